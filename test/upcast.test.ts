/** Events of older releases: every read returns the events of today, on every store. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, type EventFeed, Projection, Rebuild, SqlStore, StoreAdapter, Subscription } from "effect-maestro"
import { layerPg, uniqueName } from "./database.js"
import {
  Account,
  Deposited,
  definition,
  Events,
  lineOf,
  lines,
  log,
  Opened,
  read,
  store,
  storedTypes,
  type Today,
  Withdrawn
} from "./releases.js"
import { caughtUp, newId, start, stores } from "./subscribers.js"

const deposit = new Deposited({ amount: 10, currency: "EUR", by: "clerk" })

for (const [name, services] of stores) {
  layer(services, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.scoped("loads, replays and histories have the events of today, and a command writes today's version", () =>
      Effect.gen(function* () {
        const id = newId("loaded")
        yield* store(`Account/${id}`, log)
        expect(yield* Account.root(id)).toEqual({ id, sequence: log.length, state: lines })
        for (const [sequence] of read) {
          const until = read.filter(([one]) => one <= sequence).map(([, , line]) => line)
          expect(yield* Account.replay(id, sequence)).toEqual(until)
        }
        expect(yield* Account.replay(id, 8)).toEqual(yield* Account.replay(id, 7))
        const history = Chunk.toReadonlyArray(yield* Stream.runCollect(Account.history(id)))
        expect(history.map(({ event, sequence }) => [sequence, lineOf(event)])).toEqual(
          read.map(([sequence, , line]) => [sequence, line])
        )
        const classes = { Opened, Deposited, Withdrawn }
        for (const { event } of history) expect(event).toBeInstanceOf(classes[event._tag])
        const written = yield* Account.evaluate(id, deposit)
        expect(written).toMatchObject({ sequence: 11, state: [...lines, "+10 EUR clerk"] })
        yield* Account.evaluate(id, new Withdrawn({ amount: 1 }))
        const stored = yield* (yield* StoreAdapter.StoreAdapter).getEvents(`Account/${id}`, 11)
        expect(stored.map(({ type, version }) => [type, version])).toEqual([
          ["Deposited", 3],
          ["Withdrawn", 1]
        ])
        expect(yield* Account.fetch(id)).toEqual([...lines, "+10 EUR clerk", "-1"])
      }).pipe(Effect.provide(Account.layer))
    )

    it.scoped("a subscription's handlers run for each part in order, and dropped events run none", () =>
      Effect.gen(function* () {
        const [id, seen] = [newId("followed"), [] as unknown[]]
        yield* store(`Account/${id}`, log)
        const handle = (event: typeof Today.Type, envelope: EventFeed.FeedEvent) =>
          Effect.sync(() => {
            if (envelope.id === id) seen.push([envelope.sequence, envelope.part, lineOf(event)])
          })
        const on = Subscription.on(Account, { Opened: handle, Deposited: handle, Withdrawn: handle })
        const all = Subscription.make(newId("all"), { on })
        expect(all.filter?.types).not.toContain("Viewed")
        yield* start(all)
        yield* caughtUp(all)
        expect(seen).toEqual(read)
      })
    )

    it.scoped("a handler of one type gets it from all stored types that are read as it, and nothing else", () =>
      Effect.gen(function* () {
        const [id, seen] = [newId("followed"), [] as string[]]
        yield* store(`Account/${id}`, log)
        const some = Subscription.make(newId("some"), {
          on: Subscription.on(Account, {
            Withdrawn: (event, envelope) =>
              Effect.sync(() => {
                if (envelope.id === id) seen.push(lineOf(event))
              })
          })
        })
        expect(some.filter?.types).toEqual(storedTypes.withdrawals)
        yield* start(some)
        yield* caughtUp(some)
        expect(seen).toEqual(lines.filter((line) => line.startsWith("-")))
      })
    )

    it.scoped("the parts of an event have command ids of their own, so a process manager handles each once", () =>
      Effect.gen(function* () {
        const [id, target] = [newId("source"), newId("target")]
        yield* store(`Account/${id}`, log)
        const manager = Subscription.make(newId("manager"), {
          delivery: "at-least-once",
          on: Subscription.on(Account, {
            Withdrawn: (event, envelope) =>
              envelope.id !== id
                ? Effect.void
                : Account.evaluate(target, event).pipe(
                    Aggregate.withCommandId(Subscription.commandId("manager", envelope)),
                    Effect.repeatN(1)
                  )
          })
        })
        yield* start(manager)
        yield* caughtUp(manager)
        expect(yield* Account.fetch(target)).toEqual(["-6", "-7", "-8"])
      }).pipe(Effect.provide(Account.layer))
    )

    it.scoped("where the handler of a part fails, a retry handles all parts of its event again, at least once", () =>
      Effect.gen(function* () {
        const [id, seen] = [newId("again"), [] as string[]]
        yield* store(`Account/${id}`, [["Moved", 1, { amount: 5 }]])
        let isBroken = true
        const again = Subscription.make(newId("again"), {
          delivery: "at-least-once",
          retry: Schedule.recurs(1),
          on: Subscription.on(Account, {
            Withdrawn: (event, envelope) =>
              Effect.sync(() => {
                if (envelope.id === id) seen.push(lineOf(event))
              }),
            Deposited: (event, envelope) =>
              Effect.suspend(() => {
                if (envelope.id !== id) return Effect.void
                seen.push(lineOf(event))
                if (!isBroken) return Effect.void
                isBroken = false
                return Effect.fail("the second part")
              })
          })
        })
        yield* start(again)
        yield* caughtUp(again)
        expect(seen).toEqual(["-5", "+5 USD unknown", "-5", "+5 USD unknown"])
      })
    )

    it.scoped("an aggregate with plain ids knows its events by their stored types", () =>
      Effect.gen(function* () {
        const [id, seen] = [newId("plain"), [] as unknown[]]
        const Plain = Aggregate.make("Plain", { ...definition, streams: "plain" })
        yield* store(id, [...log, ["Viewed", 1, {}]])
        const handle = (event: typeof Today.Type, envelope: EventFeed.FeedEvent) =>
          Effect.sync(() => {
            if (envelope.id === id) seen.push([envelope.sequence, envelope.part, lineOf(event)])
          })
        const all = Subscription.make(newId("all"), {
          on: Subscription.on(Plain, { Opened: handle, Deposited: handle, Withdrawn: handle })
        })
        yield* start(all)
        yield* caughtUp(all)
        expect(seen).toEqual(read)
        yield* Effect.provide(
          Effect.gen(function* () {
            expect(yield* Plain.root(id)).toEqual({ id, sequence: 11, state: lines })
          }),
          Plain.layer
        )
      })
    )
  })
}

const sqlStore = Layer.provideMerge(SqlStore.layer, layerPg())

layer(sqlStore, { excludeTestServices: true, timeout: 60_000 })("projections", (it) => {
  const insert = (table: string, sql: SqlClient.SqlClient, id: string, sequence: number, line: string) =>
    sql`insert into ${sql(table)} (account, sequence, line) values (${id}, ${sequence}, ${line})`
  const linesIn = (table: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.map(
        sql<{ sequence: number; line: string }>`select sequence, line from ${sql(table)} order by position`,
        (rows) => rows.map(({ line, sequence }) => [sequence, line])
      )
    )
  const makeTable = Effect.flatMap(SqlClient.SqlClient, (sql) => {
    const table = uniqueName("lines")
    return Effect.as(
      sql`create table ${sql(table)} (
        position int generated always as identity primary key, account text, sequence int, line text,
        constraint ${sql(`${table}_once`)} unique (account, line)
      )`,
      table
    )
  })
  const expected = read.map(([sequence, , line]) => [sequence, line])

  const statements = (table: string, of: Projection.Source<typeof Today.Type>) => {
    const project = (event: typeof Today.Type, envelope: { id: string; sequence: number }, sql: SqlClient.SqlClient) =>
      insert(table, sql, envelope.id, envelope.sequence, lineOf(event))
    return Projection.makeSql({
      name: table,
      of,
      project: { Opened: project, Deposited: project, Withdrawn: project }
    })
  }
  const effects = (table: string, of: Projection.Source<typeof Today.Type>) => {
    const project = (event: typeof Today.Type, envelope: { id: string; sequence: number }) =>
      Effect.flatMap(SqlClient.SqlClient, (sql) => insert(table, sql, envelope.id, envelope.sequence, lineOf(event)))
    return Projection.orStoreError(
      Projection.make({ name: table, of, project: { Opened: project, Deposited: project, Withdrawn: project } })
    )
  }

  for (const [what, make] of [
    ["statements", statements],
    ["effects", effects]
  ] as const) {
    it.scoped(`of ${what}: rebuilds and subscriptions project every part, in order`, () =>
      Effect.gen(function* () {
        const kind = newId("Account")
        yield* store(`${kind}/a`, log)
        const table = yield* makeTable
        const of = Aggregate.make(kind, definition)
        const projection = make(table, of)
        const following = Subscription.fromProjections(newId("following"), [projection])
        expect(following.filter?.types).not.toContain("Viewed")
        yield* Effect.scoped(Effect.zipRight(start(following), caughtUp(following)))
        expect(yield* linesIn(table)).toEqual(expected)
        yield* Rebuild.run({ name: newId("again"), projections: [projection], tables: [table] })
        expect(yield* linesIn(table)).toEqual(expected)
      })
    )

    it.scoped(`of ${what}: a commit projects the events that it writes, at today's version`, () =>
      Effect.gen(function* () {
        const table = yield* makeTable
        const Own = Aggregate.make(newId("Own"), {
          ...definition,
          projections: [make(table, Account)].map((one) => ({
            ...one,
            of: undefined
          }))
        })
        yield* Effect.provide(
          Effect.gen(function* () {
            yield* store(Own.streamId("a"), log)
            yield* Own.evaluate("a", deposit)
          }),
          Own.layer
        )
        expect(yield* linesIn(table)).toEqual([[11, "+10 EUR clerk"]])
      })
    )
  }

  it.scoped("of all aggregates: their filter has all stored types that are read as a handled type", () =>
    Effect.gen(function* () {
      const [kind, table] = [newId("Any"), yield* makeTable]
      yield* store(`${kind}/a`, log)
      const projection = Projection.makeSql({
        name: table,
        of: "all",
        events: Events,
        project: {
          Deposited: (event, { id, kind: of, sequence }, sql) =>
            of === kind ? insert(table, sql, id, sequence, lineOf(event)) : []
        }
      })
      expect(projection.events).toEqual(storedTypes.deposits)
      yield* Rebuild.run({ name: newId("all"), projections: [projection], tables: [table] })
      expect(yield* linesIn(table)).toEqual(expected.filter(([, line]) => String(line).startsWith("+")))
    })
  )

  it.scoped("a violated constraint is the refusal of the part whose statement has failed", () =>
    Effect.gen(function* () {
      class Twice extends Schema.TaggedError<Twice>()("Twice", { line: Schema.String }) {}
      const [kind, table] = [newId("Account"), yield* makeTable]
      yield* store(`${kind}/a`, [
        ["Withdrawn", 1, { amount: 8 }],
        ["Doubled", 1, { amount: 7 }]
      ])
      const projection = Projection.make({
        name: table,
        of: Aggregate.make(kind, definition),
        project: {
          Withdrawn: (event, { id, sequence }) =>
            Effect.flatMap(SqlClient.SqlClient, (sql) => insert(table, sql, id, sequence, lineOf(event)))
        },
        onConstraint: { [`${table}_once`]: (event) => new Twice({ line: lineOf(event) }) }
      })
      const failure = yield* Effect.flip(
        Rebuild.run({ name: newId("twice"), projections: [projection], tables: [table] })
      )
      expect(failure).toEqual(new Twice({ line: "-8" }))
    })
  )
})
