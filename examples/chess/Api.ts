/**
 * The API of the page: the commands of a game, the list of games, the moves of a game, and its past states.
 */
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiError from "@effect/platform/HttpApiError"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { StoreError } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"
import { Game, GameState } from "./Game.js"
import { Result } from "./GameEvent.js"

/** `GET /games/:id`, and `POST` to `/games/:id/start`, `/games/:id/moves` and `/games/:id/end`. */
const Games = AggregateHttp.make(Game, {
  name: "games",
  path: "/games",
  paths: { StartGame: "/start", PlayMove: "/moves", EndGame: "/end" },
  statuses: { NotStarted: 404, AlreadyStarted: 409, WrongPly: 409 },
  maxBodySize: 10_000
})

class BadRequest extends Schema.TaggedError<BadRequest>()("BadRequest", { message: Schema.String }) {}

const GameRow = Schema.Struct({
  id: Schema.String,
  white: Schema.String,
  black: Schema.String,
  opening: Schema.String,
  result: Schema.NullOr(Result)
})

/** The open games, and then the others, the latest first. */
const listGames = HttpApiEndpoint.get("list", "/games").addSuccess(Schema.Array(GameRow))

/** Each move with its sequence, which `at` takes. */
const listMoves = HttpApiEndpoint.get("moves", "/games/:id/moves")
  .setPath(Schema.Struct({ id: Schema.NonEmptyString }))
  .addSuccess(Schema.Array(Schema.Struct({ sequence: Schema.Int, san: Schema.String })))
  .addError(HttpApiError.NotFound)
  .addError(BadRequest, { status: 400 })

/** The state after the event of a sequence: 1 is the start of the game. */
const readAt = HttpApiEndpoint.get("at", "/games/:id/at/:sequence")
  .setPath(Schema.Struct({ id: Schema.NonEmptyString, sequence: Schema.NumberFromString.pipe(Schema.positive()) }))
  .addSuccess(GameState)
  .addError(HttpApiError.NotFound)
  .addError(BadRequest, { status: 400 })

class Api extends HttpApi.make("chess").add(Games.group.add(listGames).add(listMoves).add(readAt)) {}

// A failure of the store is not a response of this API, so it becomes a defect: status 500.
const failures = {
  ValidationError: ({ message }: StoreError.ValidationError) => new BadRequest({ message }),
  StoreError: (error: StoreError.StoreError) => Effect.zipRight(Effect.logError(error), Effect.die(error))
}

const mustExist = (id: string) =>
  Effect.flatMap(Game.exists(id), (exists) => (exists ? Effect.void : new HttpApiError.NotFound()))

const layerGames = HttpApiBuilder.group(Api, "games", (handlers) =>
  Games.handle(handlers)
    .handle("list", () =>
      Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql<typeof GameRow.Type>`
          select id, white, black, opening, result from chess.games
          order by result is not null, played_at desc, id
          limit 500`
      ).pipe(Effect.tapError(Effect.logError), Effect.orDie)
    )
    .handle("moves", ({ path: { id } }) =>
      mustExist(id).pipe(
        Effect.zipRight(
          Game.history(id).pipe(
            Stream.filterMap(({ event, sequence }) =>
              event._tag === "MovePlayed" ? Option.some({ sequence, san: event.san }) : Option.none()
            ),
            Stream.runCollect,
            Effect.map(Chunk.toReadonlyArray)
          )
        ),
        Effect.catchTags(failures)
      )
    )
    .handle("at", ({ path: { id, sequence } }) =>
      mustExist(id).pipe(Effect.zipRight(Game.replay(id, sequence)), Effect.catchTags(failures))
    )
)

export const layer = HttpApiBuilder.api(Api).pipe(Layer.provide(layerGames))
