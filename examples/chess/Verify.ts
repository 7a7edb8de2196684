/**
 * Verifies the import: compares every stored game with the same game as chess.js reads it.
 */
import { Chess } from "chess.js"
import * as Chunk from "effect/Chunk"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Game } from "./Game.js"
import { Result } from "./GameEvent.js"
import type { Imported, ImportedGame } from "./Import.js"
import { titleOf } from "./Pgn.js"

/** Some games differ. The differences were printed before. */
export class NotVerified extends Data.TaggedError("NotVerified") {}

/** Compares all games, prints the differences, and then the number of verified games. */
export const verify = ({ broken, games }: Imported) =>
  Effect.gen(function* () {
    const results = yield* Effect.forEach(games, differences, { concurrency: 8 })
    const wrong = results.flat()
    yield* Effect.forEach(wrong, (difference) => Console.error(difference))
    const verified = results.filter((found) => found.length === 0).length
    const total = games.length + broken.length
    yield* Console.log(`\n${verified} of ${total} games verified`)
    if (verified < total) return yield* new NotVerified()
  }).pipe(Effect.withSpan("Verify.verify"))

// --- internal ---

/** A game, as the store or chess.js has it. */
interface Account {
  readonly moves: ReadonlyArray<string>
  readonly fen: string
  readonly ply: number
  readonly result: Result | null
}

const differences = ({ game, id }: ImportedGame) =>
  Effect.gen(function* () {
    const name = `game ${game.number} (${titleOf(game)})`
    const expected = asRead(game.text)
    if (Either.isLeft(expected)) return [`${name}: chess.js can't read it, so nothing is proven: ${expected.left}`]
    const stored = yield* asStored(id)
    return (["moves", "fen", "ply", "result"] as const)
      .map((key) => ({ key, is: String(stored[key]), should: String(expected.right[key]) }))
      .filter(({ is, should }) => is !== should)
      .map(({ is, key, should }) => `${name}: the store's ${key} are ${is}, and those of chess.js are ${should}`)
  })

/** The stored game: the moves from the events, the rest from the state. */
const asStored = (id: string) =>
  Effect.gen(function* () {
    const moves = yield* Game.history(id).pipe(
      Stream.filterMap(({ event }) => (event._tag === "MovePlayed" ? Option.some(event.san) : Option.none())),
      Stream.runCollect,
      Effect.map(Chunk.toReadonlyArray)
    )
    const { fen, ply, result } = yield* Game.fetch(id)
    return { moves, fen, ply, result } satisfies Account
  })

/** The game as the parser of chess.js reads it. */
const asRead = (text: string): Either.Either<Account, string> =>
  Either.try({
    try: () => {
      const chess = new Chess()
      chess.loadPgn(text)
      const moves = chess.history()
      const result = chess.getHeaders().Result
      return { moves, fen: chess.fen(), ply: moves.length, result: Schema.is(Result)(result) ? result : null }
    },
    catch: (error) => (error instanceof Error ? error.message.split("\n", 1).join() : String(error))
  })
