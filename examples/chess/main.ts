/**
 * Imports games of chess into an event store, prints tables and positions, and verifies every game.
 *
 * Run it by `npm start`, or `npm start -- --help` to see what else it can do.
 */
import * as Args from "@effect/cli/Args"
import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as CliError from "@effect/cli/ValidationError"
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Game } from "./Game.js"
import * as Import from "./Import.js"
import * as Projections from "./Projections.js"
import * as Show from "./Show.js"
import * as Source from "./Source.js"
import * as TwoHands from "./TwoHands.js"
import * as Verify from "./Verify.js"

const options = {
  file: Args.file({ name: "games.pgn" }).pipe(
    Args.withDescription("the games to import; a hundred rated games from lichess by default"),
    Args.optional
  ),
  data: Options.text("data").pipe(
    Options.withDescription("the folder that keeps the embedded store; in memory by default"),
    Options.optional
  ),
  database: Options.redacted("database").pipe(
    Options.withDescription("the URL of a Postgres server to use instead of the embedded store"),
    Options.optional
  ),
  games: Options.integer("games").pipe(
    Options.withDescription("imports only so many games, the first of the file"),
    Options.withSchema(Schema.Positive),
    Options.optional
  )
}

class TwoStores extends Data.TaggedError("TwoStores") {
  override readonly message = "there can be only one store: give --data or --database, not both"
}

/** The database that was asked for. */
const layerSql = (
  data: Option.Option<string>,
  database: Option.Option<Redacted.Redacted>
): Layer.Layer<SqlClient.SqlClient, SqlError | TwoStores> =>
  Option.match(database, {
    onNone: () => PgliteClient.layerWith({ dataDir: Option.getOrUndefined(data) }),
    onSome: (url) => (Option.isSome(data) ? Layer.fail(new TwoStores()) : PgClient.layer({ url }))
  })

/** The aggregate on the store. The example's own tables are created before the first event. */
const layerGame = Game.layer.pipe(Layer.provide(Projections.layerTables), Layer.provideMerge(SqlStore.layer))

const chess = Command.make("chess", options, ({ data, database, file, games }) =>
  Effect.gen(function* () {
    const imported = yield* Import.importGames(yield* Source.read(file, games))
    yield* Show.summary(imported)
    yield* Show.leaderboard
    yield* Show.openings
    yield* Show.board(imported.games)
    yield* TwoHands.show
    yield* Verify.verify(imported)
  }).pipe(Effect.provide(Layer.provideMerge(layerGame, layerSql(data, database))))
).pipe(Command.withDescription("Imports chess games into an event store, and verifies them."))

const main = Command.run(chess, { name: "chess", version: "1.0.0" })

main(process.argv).pipe(
  Effect.tapError((error) =>
    // The command line and the verification have printed their failures already.
    CliError.isValidationError(error) || error._tag === "NotVerified"
      ? Effect.void
      : Console.error(`chess: ${error.message}`)
  ),
  Effect.tapDefect(Effect.logError),
  Effect.provide(NodeContext.layer),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
