/** The projections of all aggregates of a list are part of its transaction, each for its own aggregate. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, Projection, SqlStore, StoreAdapter } from "effect-maestro"
import { Deposit, Deposited, definition, Limits, Withdraw, Withdrawn } from "./account.js"
import { Database, makeTable, makeWatchedPool, onPostgres } from "./callers.js"
import { uniqueName } from "./database.js"
import { aNode } from "./nodes.js"
import { Book, Booked, room } from "./room.js"

/** What the projections of a node have handled, in order. Each layer has its own name. */
class Log extends Context.Tag("test/Log")<Log, { readonly name: string; readonly lines: Array<string> }>() {}

const logging = (name: string, of?: "all") =>
  ({
    name,
    ...(of === undefined ? {} : { of }),
    project: ({ aggregateId, type }: { readonly aggregateId: string; readonly type: string }) =>
      Effect.map(Log, (log) => {
        log.lines.push(`${log.name}: ${name} ${type} ${aggregateId}`)
      })
  }) as Projection.Projection<never, Log>

it.layer(Layer.merge(MemoryStore.layer, Limits.layer))("The projections of a list in memory", (it) => {
  it.effect("run in the order of aggregates, projections and events, with the services of their own layers", () =>
    Effect.gen(function* () {
      const lines: Array<string> = []
      const logOf = (name: string) => Layer.succeed(Log, { name, lines })
      const Account = Aggregate.make("Account", {
        ...definition,
        projections: [logging("first"), logging("all", "all")]
      })
      const Room = Aggregate.make("Room", { ...room, projections: [logging("rooms")] })
      const Plain = Aggregate.make("Plain", { ...definition, streams: "plain", projections: [logging("plain")] })
      const node = yield* aNode(
        Layer.mergeAll(
          Room.layer.pipe(Layer.provide(logOf("of rooms"))),
          Account.layer.pipe(Layer.provide(logOf("of accounts"))),
          Plain.layer.pipe(Layer.provide(logOf("of plain")))
        )
      )
      yield* Aggregate.evaluateAll([
        Account.command("b", new Deposit({ amount: 2 })),
        Room.command("r", new Book({ guest: "Ann" })),
        Account.command("a", new Deposit({ amount: 1 })),
        Plain.command("p", new Deposit({ amount: 1 })),
        Account.command("b", new Withdraw({ amount: 1 }))
      ]).pipe(Effect.provide(node), Aggregate.withCommandId("c"))
      expect(lines).toEqual([
        "of accounts: first Deposited Account/b",
        "of accounts: first Deposited Account/a",
        "of accounts: first Withdrawn Account/b",
        "of accounts: all Deposited Account/b",
        "of accounts: all Deposited Account/a",
        "of accounts: all Withdrawn Account/b",
        "of rooms: rooms Booked Room/r",
        "of plain: plain Deposited p"
      ])
    }).pipe(Effect.scoped)
  )

  it.effect("a failed projection stores nothing, and the refusal names the command of its event", () =>
    Effect.gen(function* () {
      class TooMuch extends Schema.TaggedError<TooMuch>()("TooMuch", { amount: Schema.Number }) {}
      const limit = Projection.make({
        name: "limit",
        events: Schema.Union(Deposited, Withdrawn),
        project: { Deposited: ({ amount }) => (amount > 10 ? new TooMuch({ amount }) : Effect.void) }
      })
      const Account = Aggregate.make("Account", { ...definition, projections: [limit] })
      const Room = Aggregate.make("Room", room)
      const node = yield* aNode(Layer.merge(Account.layer, Room.layer))
      const [a, b, r] = [uniqueName("a"), uniqueName("b"), uniqueName("r")]
      const refused = yield* Effect.flip(
        Aggregate.evaluateAll([
          Room.command(r, new Book({ guest: "Ann" })),
          Account.command(a, new Deposit({ amount: 1 })),
          Account.command(b, new Deposit({ amount: 1 })),
          Account.command(b, new Deposit({ amount: 11 }))
        ])
      ).pipe(Effect.provide(node))
      expect(refused).toMatchObject({
        _tag: "CommandRefused",
        index: 3,
        aggregate: "Account",
        kind: "Account",
        id: b,
        refusal: new TooMuch({ amount: 11 })
      })
      const found = yield* Effect.all([Room.exists(r), Account.exists(a), Account.exists(b)]).pipe(Effect.provide(node))
      expect(found).toEqual([false, false, false])
    }).pipe(Effect.scoped)
  )
})

class NameTaken extends Schema.TaggedError<NameTaken>()("NameTaken", { name: Schema.String }) {}

/** Two aggregates that write one table with a unique name, by statements or by effects. */
const domain = Effect.gen(function* () {
  const table = yield* makeTable("name text unique, of text")
  const unique = `${table.name}_name_key`
  const insert = (sql: SqlClient.SqlClient, name: string, of: string) =>
    sql`insert into ${sql(table.name)} values (${name}, ${of})`
  const aggregates = (style: "statements" | "an effect") => {
    const Guests =
      style === "statements"
        ? Projection.makeSql({
            name: "guests",
            events: Booked,
            project: { Booked: ({ guest }, { id }, sql) => insert(sql, guest, id) },
            onConstraint: { [unique]: ({ guest }: Booked) => new NameTaken({ name: guest }) }
          })
        : Projection.orStoreError(
            Projection.make({
              name: "guests",
              events: Booked,
              project: {
                Booked: ({ guest }, { id }) => Effect.flatMap(SqlClient.SqlClient, (sql) => insert(sql, guest, id))
              },
              onConstraint: { [unique]: ({ guest }: Booked) => new NameTaken({ name: guest }) }
            })
          )
    const Amounts = Projection.makeSql({
      name: "amounts",
      events: Schema.Union(Deposited, Withdrawn),
      project: { Deposited: ({ amount }, { id }, sql) => insert(sql, `${id} ${amount}`, id) }
    })
    return {
      Account: Aggregate.make("Account", { ...definition, projections: [Amounts] }),
      Room: Aggregate.make("Room", { ...room, projections: [Guests] })
    }
  }
  return { aggregates, rows: table.rows, sql: yield* SqlClient.SqlClient }
})

it.layer(Layer.merge(onPostgres, Limits.layer), { timeout: 60_000 })("The projections of a list on Postgres", (it) => {
  for (const style of ["statements", "an effect"] as const) {
    it.scoped(`a violated constraint of ${style} is the refusal of its command, and stores no row and no event`, () =>
      Effect.gen(function* () {
        const { aggregates, rows } = yield* domain
        const { Account, Room } = aggregates(style)
        const node = yield* aNode(Layer.merge(Account.layer, Room.layer))
        const [a, r, s] = [uniqueName("a"), uniqueName("r"), uniqueName("s")]
        const book = (id: string, guest: string) =>
          Aggregate.evaluateAll([
            Account.command(a, new Deposit({ amount: 1 })),
            Room.command(id, new Book({ guest }))
          ]).pipe(Effect.provide(node))
        yield* book(r, "Ann")
        expect(yield* rows).toEqual([`Ann: ${r}`, `${a} 1: ${a}`].sort())
        yield* Account.evaluate(a, new Deposit({ amount: 2 })).pipe(Effect.provide(node))
        const before = yield* rows
        const again = Aggregate.evaluateAll([
          Account.command(a, new Deposit({ amount: 3 })),
          Room.command(s, new Book({ guest: "Ann" }))
        ]).pipe(Effect.provide(node))
        expect(yield* Effect.flip(again)).toMatchObject({ index: 1, id: s, refusal: new NameTaken({ name: "Ann" }) })
        expect(yield* rows).toEqual(before)
        expect(yield* Effect.provide(Account.root(a), node)).toMatchObject({ sequence: 2 })
      })
    )
  }

  it.scoped("a deferred constraint is the refusal of the first command whose projection declares one for it", () =>
    Effect.gen(function* () {
      const table = yield* makeTable("name text, unique (name) deferrable initially deferred")
      const insert = (sql: SqlClient.SqlClient, name: string) => sql`insert into ${sql(table.name)} values (${name})`
      const Guests = Projection.makeSql({
        name: "guests",
        events: Booked,
        project: { Booked: ({ guest }, _envelope, sql) => insert(sql, guest) },
        onConstraint: { [`${table.name}_name_key`]: ({ guest }: Booked) => new NameTaken({ name: guest }) }
      })
      const Account = Aggregate.make("Account", definition)
      const Room = Aggregate.make("Room", { ...room, projections: [Guests] })
      const node = yield* aNode(Layer.merge(Account.layer, Room.layer))
      const list = (...guests: ReadonlyArray<string>) =>
        Aggregate.evaluateAll([
          Account.command(uniqueName("a"), new Deposit({ amount: 1 })),
          ...guests.map((guest) => Room.command(uniqueName("r"), new Book({ guest })))
        ]).pipe(Effect.provide(node))
      yield* list("Ann")
      // Only one command declares a refusal.
      expect(yield* Effect.flip(list("Ann"))).toMatchObject({ index: 1, refusal: new NameTaken({ name: "Ann" }) })
      // The database does not say that the second of them is the cause.
      expect(yield* Effect.flip(list("Bob", "Ann"))).toMatchObject({
        index: 1,
        refusal: new NameTaken({ name: "Bob" })
      })
      expect(yield* table.rows).toHaveLength(1)
    })
  )

  it.scoped("statements of several aggregates are sent with the events in one round trip, as those of one", () =>
    Effect.gen(function* () {
      const { aggregates, rows } = yield* domain
      const { Account, Room } = aggregates("statements")
      const watched = makeWatchedPool(yield* Database)
      let sent = 0
      yield* Effect.gen(function* () {
        const list = Effect.flatMap(Effect.all([Account.newId, Account.newId, Room.newId]), ([a, b, r]) =>
          Aggregate.evaluateAll([
            Account.command(a, new Deposit({ amount: 1 })),
            Account.command(b, new Deposit({ amount: 1 })),
            Room.command(r, new Book({ guest: r }))
          ])
        )
        // The first use of a connection sends more.
        yield* list
        watched.onQuery = () => {
          sent++
        }
        // The least of three, because a notification may be sent beside a command, and a further connection opened.
        const leastSentBy = <A, E, R>(command: Effect.Effect<A, E, R>) =>
          Effect.suspend(() => {
            const before = sent
            return Effect.map(command, () => sent - before)
          }).pipe(
            Effect.replicateEffect(3),
            Effect.map((counts) => Math.min(...counts))
          )
        const single = Effect.flatMap(Account.newId, (id) => Account.evaluate(id, new Deposit({ amount: 1 })))
        expect(yield* leastSentBy(list)).toBe(yield* leastSentBy(single))
      }).pipe(
        Effect.provide(
          Layer.merge(Account.layer, Room.layer).pipe(
            Layer.provide(Layer.orDie(SqlStore.layerWith({ migrate: false }))),
            Layer.provideMerge(watched.layer)
          )
        )
      )
      expect(yield* rows).toHaveLength(15)
    })
  )

  it.scoped("in a transaction of the caller a list is a part of it, and is rolled back with it", () =>
    Effect.gen(function* () {
      const { aggregates, rows, sql } = yield* domain
      const { Account, Room } = aggregates("statements")
      const node = yield* aNode(Layer.merge(Account.layer, Room.layer))
      const [a, r] = [uniqueName("a"), uniqueName("r")]
      const list = Aggregate.evaluateAll([
        Account.command(a, new Deposit({ amount: 1 })),
        Room.command(r, new Book({ guest: "Cid" }))
      ])
      const inside = Effect.gen(function* () {
        yield* list
        const refused = yield* Effect.flip(
          Aggregate.evaluateAll([
            Account.command(a, new Deposit({ amount: 5 })),
            Room.command(r, new Book({ guest: "Dan" }))
          ])
        )
        expect(refused).toMatchObject({ index: 1, refusal: { _tag: "Taken", guest: "Cid" } })
        yield* Aggregate.evaluateAll([Account.command(a, new Deposit({ amount: 2 }))]).pipe(
          Aggregate.withCommandId("c")
        )
        return yield* Effect.all([Account.root(a), Room.root(r)])
      })
      const rolledBack = sql.withTransaction(Effect.flatMap(inside, () => Effect.fail("roll back")))
      expect(yield* Effect.flip(rolledBack).pipe(Effect.provide(node))).toBe("roll back")
      expect(yield* rows).toEqual([])
      expect(yield* Effect.all([Account.root(a), Room.root(r)]).pipe(Effect.provide(node))).toMatchObject([
        { sequence: 0 },
        { sequence: 0 }
      ])
      const roots = yield* sql.withTransaction(inside).pipe(Effect.provide(node))
      expect(roots).toMatchObject([{ sequence: 2 }, { sequence: 1, state: "Cid" }])
      expect(yield* rows).toHaveLength(3)
    })
  )

  it.scoped("a connection that is killed at COMMIT: the commit is settled, and the list takes effect once", () =>
    Effect.gen(function* () {
      const { aggregates, rows, sql } = yield* domain
      const { Account, Room } = aggregates("statements")
      const name = uniqueName("kill")
      yield* sql.unsafe(`
        create sequence ${name}_count;
        create function ${name}() returns trigger language plpgsql as $$ begin
          if nextval('public.${name}_count') = 1 then perform pg_terminate_backend(pg_backend_pid()); end if; return null;
        end $$;
        create constraint trigger ${name} after insert on maestro.event_log deferrable initially deferred
          for each row when (new.type = 'Booked') execute function ${name}()`)
      const node = yield* aNode(Layer.merge(Account.layer, Room.layer))
      const [a, r] = [uniqueName("a"), uniqueName("r")]
      const results = yield* Aggregate.evaluateAll(
        [Account.command(a, new Deposit({ amount: 1 })), Room.command(r, new Book({ guest: "Eve" }))],
        { retry: Schedule.recurs(1000) }
      ).pipe(Effect.provide(node))
      yield* sql.unsafe(`drop trigger ${name} on maestro.event_log`)
      expect(results.map(({ sequence }) => sequence)).toEqual([1, 1])
      expect(yield* rows).toEqual([`Eve: ${r}`, `${a} 1: ${a}`].sort())
      const store = yield* StoreAdapter.StoreAdapter
      expect(yield* store.getEvents(Account.streamId(a), 1)).toHaveLength(1)
      expect(yield* sql.unsafe(`select last_value::int as n from ${name}_count`)).toEqual([{ n: 2 }])
    })
  )
})
