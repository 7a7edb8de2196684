/**
 * Strong projections over all games: tables of games, players and openings. They are written in the transaction that
 * stores the events, so they are never behind, and no game counts twice.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Projection } from "effect-maestro"
import { GameEnded, GameStarted, type Result } from "./GameEvent.js"

/** The games. It is the first of the projections, because the others read the players from its table. */
export const Games = Projection.makeSql({
  name: "chess.games",
  events: Schema.Union(GameStarted, GameEnded),
  project: {
    GameStarted: (game, { id }, sql) =>
      sql`insert into chess.games ${sql.insert({
        id,
        white: game.white.name,
        white_rating: game.white.rating,
        black: game.black.name,
        black_rating: game.black.rating,
        eco: game.eco ?? "?",
        opening: game.opening ?? "?",
        played_at: game.playedAt ?? ""
      })}`,
    GameEnded: ({ result }, { id }, sql) => sql`update chess.games set result = ${result} where id = ${id}`
  }
})

/** The games and points of every player, and the rating in the latest game. */
export const Players = Projection.makeSql({
  name: "chess.players",
  events: GameEnded,
  project: {
    // Sorted by name: all transactions lock players in one order, so that no two can deadlock.
    GameEnded: ({ result }, { id }, sql) => sql`
      insert into chess.players as known (name, rating, rated_at, games, score)
      select name, max(rating), max(played_at), count(*), sum(score)
      from (
        select white as name, white_rating as rating, played_at, ${pointsOfWhite[result]}::numeric as score
        from chess.games where id = ${id}
        union all
        select black, black_rating, played_at, 1 - ${pointsOfWhite[result]}::numeric
        from chess.games where id = ${id}
      ) as results
      where name <> '?'
      group by name
      order by name
      on conflict (name) do update set
        games = known.games + excluded.games,
        score = known.score + excluded.score,
        rating = case when excluded.rated_at >= known.rated_at then coalesce(excluded.rating, known.rating)
          else coalesce(known.rating, excluded.rating) end,
        rated_at = greatest(known.rated_at, excluded.rated_at)`
  }
})

/** How often each opening was played, with the results. */
export const Openings = Projection.makeSql({
  name: "chess.openings",
  events: GameEnded,
  project: {
    GameEnded: ({ result }, { id }, sql) => sql`
      insert into chess.openings as known (eco, name, games, white, draw, black)
      select eco, opening, 1, ${Number(result === "1-0")}, ${Number(result === "1/2-1/2")}, ${Number(result === "0-1")}
      from chess.games where id = ${id}
      on conflict (eco, name) do update set
        games = known.games + 1,
        white = known.white + excluded.white,
        draw = known.draw + excluded.draw,
        black = known.black + excluded.black`
  }
})

/** Creates the tables. Text is compared byte by byte, so that the collation of the database does not matter. */
export const layerTables = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql.withTransaction(
      Effect.gen(function* () {
        // `if not exists` alone fails when two programs start concurrently.
        yield* sql`select pg_advisory_xact_lock(hashtextextended('chess', 0))`
        yield* sql`create schema if not exists chess`
        yield* sql`create table if not exists chess.games (
          id text collate "C" primary key,
          white text not null,
          white_rating int,
          black text not null,
          black_rating int,
          eco text not null,
          opening text not null,
          played_at text collate "C" not null,
          result text
        )`
        yield* sql`create table if not exists chess.players (
          name text collate "C" primary key,
          rating int,
          rated_at text collate "C" not null,
          games int not null,
          score numeric not null
        )`
        yield* sql`create table if not exists chess.openings (
          eco text collate "C",
          name text collate "C",
          games int not null,
          white int not null,
          draw int not null,
          black int not null,
          primary key (eco, name)
        )`
      })
    )
  })
)

// --- internal ---

const pointsOfWhite: Record<Result, number> = { "1-0": 1, "1/2-1/2": 0.5, "0-1": 0 }
