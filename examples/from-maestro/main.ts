/**
 * Moves the events of Maestro's table `event_log` into this store, and loads an aggregate from them.
 *
 * `npx tsx examples/from-maestro/main.ts`
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Arr from "effect/Array"
import * as Chunk from "effect/Chunk"
import * as Console from "effect/Console"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, type Event, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"

// --- the aggregate: command handlers become `decide`, event handlers become `evolve` ---

class Incremented extends Schema.TaggedClass<Incremented>()("Incremented", { by: Schema.Int }) {}
class Named extends Schema.TaggedClass<Named>()("Named", { name: Schema.String }) {}
class Increment extends Schema.TaggedClass<Increment>()("Increment", { by: Schema.Int }) {}

const Counter = Aggregate.make("Counter", {
  state: Schema.Struct({ value: Schema.Int, name: Schema.NullOr(Schema.String) }),
  initialState: { value: 0, name: null },
  events: Schema.Union(Incremented, Named),
  commands: Increment,
  decide: { Increment: ({ by }) => Effect.succeed([new Incremented({ by })]) },
  evolve: {
    Incremented: (state, { by }) => ({ ...state, value: state.value + by }),
    Named: (state, { name }) => ({ ...state, name })
  }
})

// --- the move ---

/** Maestro stores no kind of aggregate, so the type of an event decides on it, and on the new type. */
const types: Record<string, { readonly streamId: (id: string) => string; readonly type: string }> = {
  counter_incremented: { streamId: Counter.streamId, type: "Incremented" },
  counter_named: { streamId: Counter.streamId, type: "Named" }
}

interface Row {
  /** Timestamp and id as hexadecimal digits: 12 of milliseconds, 4 of a counter, 16 of the node. */
  readonly timestamp: string
  readonly aggregate_id: string
  readonly sequence: number
  readonly type: string
  readonly body: Readonly<Record<string, unknown>>
}

const timestampOf = (hex: string): Timestamp.Timestamp =>
  Timestamp.fromParts({
    millis: Number.parseInt(hex.slice(0, 12), 16),
    counter: Number.parseInt(hex.slice(12, 16), 16),
    node: BigInt(`0x${hex.slice(16)}`)
  })

const eventOf = (row: Row): Effect.Effect<Event.Event> => {
  const known = types[row.type]
  return known === undefined
    ? Effect.dieMessage(`no aggregate has events of the type ${row.type}`)
    : Effect.succeed({
        timestamp: timestampOf(row.timestamp),
        aggregateId: known.streamId(row.aggregate_id),
        sequence: row.sequence,
        type: known.type,
        version: 1,
        body: row.body,
        metadata: {}
      })
}

/** Commits all events in the order of their timestamps. Run again, it finds them stored, and writes nothing. */
const move = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const store = yield* StoreAdapter.StoreAdapter
  const rows = yield* sql<Row>`
    select encode(timestamp, 'hex') as timestamp, encode(aggregate_id, 'hex') as aggregate_id, sequence, type, body
    from event_log order by timestamp`
  const events = yield* Effect.forEach(rows, eventOf)
  yield* Effect.forEach(Arr.chunksOf(events, 1000), store.commitEvents, { discard: true })
  return events.length
})

// --- what Maestro left: its table, with two events ---

const createEventLog = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql`create table event_log (
    timestamp bytea primary key, aggregate_id bytea not null, sequence int not null, type varchar(256) not null,
    body jsonb not null, unique (aggregate_id, sequence))`
  yield* sql`insert into event_log values
    ('\\x018bcfe56800000000000000000000ab', '\\x018bcfe5680000000000000000000001', 1, 'counter_incremented', '{"by": 2}'),
    ('\\x018bcfe57388000100000000000000ab', '\\x018bcfe5680000000000000000000001', 2, 'counter_named', '{"name": "hits"}')`
})

const program = Effect.gen(function* () {
  yield* createEventLog
  yield* Console.log(`moved: ${yield* move} events`)
  const id = "018bcfe5680000000000000000000001"
  const events = Chunk.toReadonlyArray(yield* Stream.runCollect(Counter.history(id)))
  for (const { event, sequence, timestamp } of events) {
    yield* Console.log(`${sequence} ${event._tag} ${DateTime.formatIso(Timestamp.toDateTime(timestamp))}`)
  }
  yield* Console.log("now:", yield* Counter.fetch(id))
  const { state } = yield* Counter.evaluate(id, new Increment({ by: 3 }))
  yield* Console.log("after one more command:", state)
})

const layer = Counter.layer.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(PgliteClient.layerMemory))

Effect.runPromise(Effect.provide(program, layer))
