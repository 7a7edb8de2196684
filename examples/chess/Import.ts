/**
 * Imports games into the store: several concurrently, each move by move. It goes on where an earlier import ended.
 */
import * as Arr from "effect/Array"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { EndGame, Game, type GameState, PlayMove, StartGame } from "./Game.js"
import { header, idOf, type PgnGame, titleOf } from "./Pgn.js"
import * as Progress from "./Progress.js"
import * as Rules from "./Rules.js"

/** A game that is in the store from its start to its end. */
export interface ImportedGame {
  readonly id: string
  readonly game: PgnGame
  /** Whether it was imported now, was stored in part, or was stored already. */
  readonly how: "imported" | "continued" | "found"
}

/** A game that could not be imported to its end. */
export class BrokenGame extends Schema.TaggedError<BrokenGame>()("BrokenGame", {
  number: Schema.Number,
  title: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `game ${this.number} (${this.title}): ${this.reason}`
  }
}

/** The result of an import. */
export interface Imported {
  readonly games: ReadonlyArray<ImportedGame>
  readonly broken: ReadonlyArray<BrokenGame>
  /** How many games are in the file a second time. */
  readonly duplicate: number
  readonly tally: Progress.Tally
  readonly took: Duration.Duration
}

/** Imports all games. A broken game does not stop the others. A failure of the store does. */
export const importGames = Effect.fn("Import.importGames")(function* (games: ReadonlyArray<PgnGame>) {
  const { clashing, distinct, duplicate } = identify(games)
  const progress = yield* Progress.make(distinct.length)
  const [took, outcomes] = yield* Effect.forEach(
    distinct,
    ([id, game]) =>
      importGame(id, game, progress).pipe(
        Effect.map(Either.right),
        Effect.catchTag("BrokenGame", (broken) => Effect.succeed(Either.left(broken))),
        Effect.zipLeft(progress.gameDone)
      ),
    { concurrency: 8 }
  ).pipe(Effect.timed)
  const [broken, imported] = Arr.separate(outcomes)
  return {
    games: imported,
    broken: [...clashing, ...broken].sort((one, other) => one.number - other.number),
    duplicate,
    tally: yield* progress.tally,
    took
  } satisfies Imported
}, Effect.scoped)

// --- internal ---

/**
 * Gives every game its id. A game that is in the file twice is imported once. Of two different games with one id, the
 * second is broken.
 */
const identify = (games: ReadonlyArray<PgnGame>) => {
  const distinct = new Map<string, PgnGame>()
  const clashing: Array<BrokenGame> = []
  for (const game of games) {
    const id = idOf(game)
    const known = distinct.get(id)
    if (known === undefined) distinct.set(id, game)
    else if (known.moves.join(" ") !== game.moves.join(" ") || known.result !== game.result) {
      clashing.push(
        brokenGame(game, `it has the address of game ${known.number} (${titleOf(known)}), and is another game`)
      )
    }
  }
  return { distinct: [...distinct], clashing, duplicate: games.length - distinct.size - clashing.length }
}

/** Imports one game. Moves that are stored already are skipped. */
const importGame = (id: string, game: PgnGame, progress: Progress.Progress) => {
  const evaluate = <C extends StartGame | PlayMove | EndGame>(command: C) =>
    Effect.tap(Game.evaluate(id, command), ({ events }) =>
      progress.add({ commands: 1, moves: command._tag === "PlayMove" ? 1 : 0, events: events.length })
    )

  return Effect.gen(function* () {
    const variant = header(game, "Variant")
    if (variant !== null && !isStandard(variant)) {
      return yield* brokenGame(game, `it is a game of ${variant}, and only standard chess is imported`)
    }
    const state = yield* Game.fetch(id)
    if (isComplete(state, game)) return { id, game, how: "found" } satisfies ImportedGame
    if (state.players === null) yield* evaluate(startOf(game))
    else if (!isBeginningOf(state, game)) {
      return yield* brokenGame(game, `the store has another game under its id ${id}`)
    }
    for (const [index, san] of game.moves.entries()) {
      if (index >= state.ply) yield* evaluate(new PlayMove({ ply: index + 1, san }))
    }
    if (game.result !== null) {
      const termination = header(game, "Termination")
      yield* evaluate(new EndGame({ ply: game.moves.length, result: game.result, termination }))
    }
    return { id, game, how: state.players === null ? "imported" : "continued" } satisfies ImportedGame
  }).pipe(
    // Another import is working on the same game, so go on from its present state.
    Effect.retry({ while: ({ _tag }) => _tag === "AlreadyStarted" || _tag === "WrongPly" || _tag === "GameOver" }),
    Effect.catchTags({
      IllegalMove: (refusal) =>
        brokenGame(
          game,
          `at move ${moveNumber(refusal.fen)}, ${refusal.message}. The ${refusal.ply - 1} plies before it are stored, and the game stays open`
        ),
      InvalidPosition: (refusal) => brokenGame(game, refusal.message),
      ValidationError: (refusal) => brokenGame(game, refusal.message)
    }),
    Effect.withSpan("Import.importGame", { attributes: { "game.id": id } })
  )
}

/** The names of ordinary chess, also from a position that the game gives. */
const isStandard = (variant: string): boolean => /^(standard|normal|chess|from position)$/i.test(variant)

const brokenGame = (game: PgnGame, reason: string): BrokenGame =>
  new BrokenGame({ number: game.number, title: titleOf(game), reason })

const startOf = (game: PgnGame): StartGame =>
  new StartGame({
    white: { name: header(game, "White") ?? "?", rating: rating(header(game, "WhiteElo")) },
    black: { name: header(game, "Black") ?? "?", rating: rating(header(game, "BlackElo")) },
    event: header(game, "Event"),
    site: header(game, "Site"),
    playedAt: playedAt(header(game, "UTCDate", "Date"), header(game, "UTCTime", "Time")),
    timeControl: header(game, "TimeControl"),
    eco: header(game, "ECO"),
    opening: header(game, "Opening"),
    fen: header(game, "FEN")
  })

const rating = (text: string | null): number | null => (text !== null && /^\d{1,4}$/.test(text) ? Number(text) : null)

/** Unknown parts of a date count as zero, so `2012.??.??` is before `2012.12.31`. */
const playedAt = (date: string | null, time: string | null): string | null =>
  date === null ? null : `${date.replaceAll("?", "0")} ${time ?? ""}`.trim()

/** Whether nothing is missing. That the stored game is this one is verified later. */
const isComplete = (state: GameState, game: PgnGame): boolean =>
  state.result !== null || (state.players !== null && game.result === null && state.ply === game.moves.length)

/** Whether the open game in the store is the beginning of this one. */
const isBeginningOf = (state: GameState, game: PgnGame): boolean =>
  state.ply <= game.moves.length && state.fen === positionAt(game, state.ply)

/** The position after so many plies, if the game has that many. */
const positionAt = (game: PgnGame, ply: number): string | undefined =>
  Either.getRight(Rules.position(header(game, "FEN") ?? Rules.initialPosition)).pipe(
    Option.flatMap((start) => Rules.positionAfter(start, game.moves.slice(0, ply))),
    Option.getOrUndefined
  )

/** The number of the next move, as a score sheet has it: `23.` for White, `23...` for Black. */
const moveNumber = (fen: string): string => {
  const [, turn, , , , fullMoves] = fen.split(" ")
  return `${fullMoves}${turn === "w" ? "." : "..."}`
}
