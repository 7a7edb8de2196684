/**
 * Prints the result of an import: the numbers, the tables of the projections, and a position from the past.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as SqlSchema from "@effect/sql/SqlSchema"
import * as Arr from "effect/Array"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Game } from "./Game.js"
import type { Imported, ImportedGame } from "./Import.js"
import { titleOf } from "./Pgn.js"
import * as Rules from "./Rules.js"

/** The numbers of games, commands and events, and the speed. */
export const summary = ({ broken, games, duplicate, tally, took }: Imported) =>
  Effect.gen(function* () {
    const count = (how: ImportedGame["how"]) => games.filter((game) => game.how === how).length
    const seconds = Duration.toSeconds(took)
    const found = [`${count("found")} games found`, `${count("imported")} imported`]
    if (count("continued") > 0) found.push(`${count("continued")} continued`)
    if (duplicate > 0) found.push(`${duplicate} in the file twice`)
    if (broken.length > 0) found.push(`${broken.length} broken`)
    yield* Console.log(`\n${found.join(", ")}`)
    yield* Console.log(
      `${tally.commands} commands (${tally.moves} moves), ${tally.events} events in ${seconds.toFixed(1)} s: ` +
        `${Math.round(tally.commands / Math.max(seconds, 0.001))} commands/s`
    )
    yield* Effect.forEach(broken, ({ message }) => Console.error(message))
  })

/** The players with the most points, of all games that have ended. */
export const leaderboard = Effect.gen(function* () {
  yield* Console.log("\nLeaderboard")
  for (const [index, player] of (yield* topPlayers()).entries()) {
    const rating = Option.match(player.rating, { onNone: () => "   -", onSome: (points) => String(points).padStart(4) })
    yield* Console.log(
      `${cell(index + 1, 3)}. ${player.name.padEnd(24)} ${rating}  ${cell(player.score, 5)} of ${cell(player.games, 3)}`
    )
  }
})

/** The openings played most, with their results. */
export const openings = Effect.gen(function* () {
  yield* Console.log("\nOpenings                                                 games   1-0     ½   0-1")
  for (const opening of yield* topOpenings()) {
    const name = opening.name.length > 48 ? `${opening.name.slice(0, 47)}…` : opening.name
    const counts = [opening.games, opening.white, opening.draw, opening.black]
    yield* Console.log(`  ${opening.eco.padEnd(3)} ${name.padEnd(50)}${counts.map((count) => cell(count, 6)).join("")}`)
  }
})

/** The board of one game after move 20: a past state, folded from the events up to it. */
export const board = (games: ReadonlyArray<ImportedGame>) =>
  Effect.gen(function* () {
    const byLength = Arr.map(games, ({ game, id }) => ({ game, id, ply: Math.min(game.moves.length, 40) }))
    const chosen = byLength.reduce<(typeof byLength)[number] | undefined>(
      (best, candidate) => (best === undefined || candidate.ply > best.ply ? candidate : best),
      undefined
    )
    if (chosen === undefined) return
    // The first event is the start, so the event after ply n is number n + 1.
    const state = yield* Game.replay(chosen.id, chosen.ply + 1)
    yield* Console.log(`\n${titleOf(chosen.game)} (${chosen.id}) after move ${Math.ceil(chosen.ply / 2)}`)
    yield* Console.log(Rules.board(state.fen))
  })

// --- internal ---

const cell = (value: number, width: number): string => String(value).padStart(width)

const PlayerRow = Schema.Struct({
  name: Schema.String,
  rating: Schema.OptionFromNullOr(Schema.Int),
  games: Schema.Int,
  score: Schema.Number
})

const topPlayers = SqlSchema.findAll({
  Request: Schema.Void,
  Result: PlayerRow,
  execute: () =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`
        select name, rating, games, score::float8 as score from chess.players
        order by chess.players.score desc, games, rating desc nulls last, name
        limit 10`
    )
})

const OpeningRow = Schema.Struct({
  eco: Schema.String,
  name: Schema.String,
  games: Schema.Int,
  white: Schema.Int,
  draw: Schema.Int,
  black: Schema.Int
})

const topOpenings = SqlSchema.findAll({
  Request: Schema.Void,
  Result: OpeningRow,
  execute: () =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`
        select eco, name, games, white, draw, black from chess.openings
        where name <> '?'
        order by games desc, eco, name
        limit 5`
    )
})
