/**
 * Prints the size of an event log, and what a year of such events would take:
 *
 * `DATABASE_URL=postgres://… npx tsx examples/scaling/main.ts 100000`, where the number is that of the events a day. `SCHEMA` names another schema
 * than `maestro`. It only reads. Without `DATABASE_URL` it fills an embedded store with a few events.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { SqlError } from "@effect/sql/SqlError"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Arr from "effect/Array"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Aggregate, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { bytesOfYear, type LogSize, measure } from "./LogSize.js"

class ItemAdded extends Schema.TaggedClass<ItemAdded>()("ItemAdded", { product: Schema.String, cents: Schema.Int }) {}
class AddItems extends Schema.TaggedClass<AddItems>()("AddItems", { count: Schema.Int }) {}

const Order = Aggregate.make("Order", {
  state: Schema.Int,
  initialState: 0,
  events: ItemAdded,
  commands: AddItems,
  decide: {
    AddItems: ({ count }) =>
      Effect.succeed(
        Arr.makeBy(count, (number) => new ItemAdded({ product: `a product of the shop, ${number}`, cents: 1999 }))
      )
  },
  evolve: { ItemAdded: (items) => items + 1 }
})

/** Five hundred orders of ten events. */
const fill = Effect.forEach(
  Arr.range(1, 500),
  () => Effect.flatMap(Order.newId, (id) => Order.evaluate(id, new AddItems({ count: 10 }))),
  { concurrency: 16, discard: true }
)

const print = (size: LogSize, eventsADay: number) =>
  Effect.gen(function* () {
    const { bytes, events, partitions, parts } = size
    yield* Console.log(`${events} events in ${partitions === 1 ? "one table" : `${partitions} partitions`}`)
    if (events === 0) return
    for (const part of [...parts, { name: "in all", bytes }])
      yield* Console.log(`  ${part.name.padEnd(22)} ${(part.bytes / events).toFixed(0).padStart(6)} bytes an event`)
    yield* Console.log(
      `${eventsADay} events a day take ${(bytesOfYear(size, eventsADay) / 1e9).toFixed(1)} GB of disk a year`
    )
  })

const Settings = Config.all({
  url: Config.option(Config.redacted("DATABASE_URL")),
  schema: Config.withDefault(Config.string("SCHEMA"), "maestro")
})

/** What ends the program, for one line of the console. */
class Stopped extends Data.TaggedError("Stopped")<{ readonly message: string }> {}

/** The argument of the program. */
const eventsOf = (argument: string) =>
  Effect.mapError(
    Schema.decodeUnknown(Schema.NumberFromString.pipe(Schema.finite(), Schema.positive()))(argument),
    () => new Stopped({ message: `The events a day must be a number above 0, and are ${JSON.stringify(argument)}` })
  )

const program = Effect.gen(function* () {
  const { schema, url } = yield* Settings
  const eventsADay = yield* eventsOf(process.argv[2] ?? "100000")
  const size = Option.match(url, {
    onSome: (url) => Effect.provide(measure(schema), PgClient.layer({ url, maxConnections: 1 })),
    onNone: () =>
      Effect.zipRight(fill, measure("maestro")).pipe(
        Effect.provide(
          Order.layer.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(PgliteClient.layerMemory))
        )
      )
  })
  yield* print(yield* size, eventsADay)
})

/** A failure is one line, and code 1. */
const failing = (failure: unknown) => Effect.zipRight(Console.error(messageOf(failure)), Effect.fail(failure))

/** The message of an `SqlError` says no more than that a statement failed; that of the database is in its cause. */
const messageOf = (failure: unknown): string => {
  if (failure instanceof AggregateError && failure.message === "") return failure.errors.map(messageOf).join("; ")
  if (!(failure instanceof Error)) return String(failure)
  return failure instanceof SqlError ? `${failure.message}: ${messageOf(failure.cause)}` : failure.message
}

NodeRuntime.runMain(Effect.catchAll(program, failing), { disableErrorReporting: true })
