/**
 * Shows the progress of the import: one line that is painted again in a terminal, and plain lines elsewhere.
 */
import * as Terminal from "@effect/platform/Terminal"
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"

/** The numbers so far. */
export interface Tally {
  readonly games: number
  readonly commands: number
  readonly moves: number
  readonly events: number
}

export interface Progress {
  /** Adds to the tally. */
  readonly add: (done: Partial<Tally>) => Effect.Effect<void>
  /** Counts one more game. */
  readonly gameDone: Effect.Effect<void>
  readonly tally: Effect.Effect<Tally>
}

/** Shows the progress towards a number of games until the scope closes. */
export const make = Effect.fnUntraced(function* (games: number) {
  const terminal = yield* Terminal.Terminal
  const tally = yield* Ref.make<Tally>({ games: 0, commands: 0, moves: 0, events: 0 })
  const begun = yield* Clock.currentTimeMillis
  const line = Effect.zipWith(Ref.get(tally), Clock.currentTimeMillis, (done, now) => {
    const perSecond = now > begun ? Math.round((done.moves * 1000) / (now - begun)) : 0
    return `${done.games}/${games} games, ${done.moves} moves, ${perSecond} moves/s`
  })

  const isTerminal = yield* terminal.isTTY
  if (isTerminal) {
    const paint = Effect.gen(function* () {
      const done = yield* Ref.get(tally)
      const filled = Math.round((done.games / games) * barWidth)
      const bar = "█".repeat(filled) + "░".repeat(barWidth - filled)
      // A line that wraps can't be painted over, so it is never wider than the terminal.
      const text = `${bar} ${yield* line}`.slice(0, Math.max((yield* terminal.columns) - 1, barWidth))
      yield* terminal.display(`\r\u001b[2K${text}`)
      // A failure to show the progress must not stop the import.
    }).pipe(Effect.ignore)
    yield* Effect.addFinalizer(() => Effect.zipRight(paint, Effect.ignore(terminal.display("\n"))))
    yield* Effect.forkScoped(Effect.repeat(paint, Schedule.spaced("100 millis")))
  }

  return {
    add: (done) =>
      Ref.update(tally, (before) => ({
        games: before.games + (done.games ?? 0),
        commands: before.commands + (done.commands ?? 0),
        moves: before.moves + (done.moves ?? 0),
        events: before.events + (done.events ?? 0)
      })),
    gameDone: Effect.gen(function* () {
      const done = yield* Ref.updateAndGet(tally, (before) => ({ ...before, games: before.games + 1 }))
      if (!isTerminal && (done.games % 10 === 0 || done.games === games)) yield* Console.log(yield* line)
    }),
    tally: Ref.get(tally)
  } satisfies Progress
})

// --- internal ---

const barWidth = 30
