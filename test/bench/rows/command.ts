/** Evaluates a command: on new aggregates, on one aggregate for each client, and on one aggregate for all clients. */
import { randomUUID } from "node:crypto"
import {
  CommandHandler,
  type CommandHandlerRetryOptions,
  type EventStore,
  isExpectedVersionConflictError
} from "@event-driven-io/emmett"
import * as Effect from "effect/Effect"
import type { Aggregate } from "effect-maestro"
import { Account, type Balance, Deposit, type EmmettDeposited, emmettAccount, emmettDeposited } from "../domain.js"
import { type Contestant, contestant, type Work, workFor } from "../measure.js"
import type { Ours, Stage } from "../stage.js"
import { contest, fewer, type Row } from "./row.js"

export const onNew: Row = contest({
  name: "new",
  work: "command on a new aggregate",
  clients: [1, 16, 64],
  contestants: ({ emmett, ours }) => [
    contestant("ours", () => () => ours.run(Effect.flatMap(Account.newId, depositOn))),
    contestant("emmett", () => fresh(emmettDeposit(emmett.store)))
  ]
})

export const onHot: Row = contest({
  name: "hot",
  work: "command on a hot aggregate per client",
  clients: [1, 16, 64],
  contestants: ({ emmett, ours }) => [
    contestant("ours", () => hot(deposit(ours.run))),
    contestant("emmett", () => hot(emmettDeposit(emmett.store)))
  ]
})

export const onShort: Row = contest({
  name: "hot-short",
  work: "command on an aggregate per client, 50 on each",
  clients: [1, 16],
  effort: fewer,
  contestants: ({ emmett, ours }) => [
    contestant("ours", () => short(deposit(ours.run))),
    contestant("emmett", () => short(emmettDeposit(emmett.store)))
  ]
})

export const onOne: Row = contest({
  name: "hot-one",
  work: "commands on one hot aggregate",
  clients: [16, 64],
  contestants: ({ emmett, ours }) => [oursOnOne(ours), emmettOnOne(emmett, { onVersionConflict: true })]
})

export const onOneEnduring: Row = contest({
  name: "hot-one-enduring",
  work: "the same, Emmett retrying until it succeeds",
  clients: [16],
  effort: fewer,
  contestants: ({ emmett, ours }) => [
    oursOnOne(ours),
    emmettOnOne(emmett, {
      onVersionConflict: {
        retries: 100,
        minTimeout: 100,
        maxTimeout: 1000,
        factor: 1.5,
        shouldRetryError: isExpectedVersionConflictError
      }
    })
  ]
})

/** A new aggregate for each command. */
export const fresh =
  (evaluate: Evaluate): Work =>
  () =>
    evaluate(randomUUID())

/** One aggregate for each client, which is empty when the turn begins. */
export const hot = (evaluate: Evaluate): Work => {
  const ids = new Map<number, string>()
  return (client) => {
    const id = ids.get(client) ?? randomUUID()
    ids.set(client, id)
    return evaluate(id)
  }
}

export const deposit =
  (run: Ours<Aggregate.Instance<"Account">>["run"]): Evaluate =>
  (id) =>
    run(depositOn(id))

/** One attempt by default, because that is the default of Emmett. */
export const emmettDeposit = <Store extends EventStore>(store: Store, retry?: CommandHandlerRetryOptions): Evaluate => {
  const options = { ...emmettAccount, ...(retry === undefined ? {} : { retry }) }
  const handle = CommandHandler<Balance, EmmettDeposited>(options)
  return (id) => handle(store, id, () => emmettDeposited)
}

// --- internal ---

type Evaluate = (id: string) => Promise<unknown>

const depositOn = (id: string) => Account.evaluate(id, new Deposit({ amount: 1 }))

/** One aggregate for each client, and another one after every fifty commands. */
const short = (evaluate: Evaluate): Work => {
  const done = new Map<number, { readonly id: string; readonly count: number }>()
  return (client) => {
    const before = done.get(client)
    const { count, id } = before === undefined || before.count === 50 ? { id: randomUUID(), count: 0 } : before
    done.set(client, { id, count: count + 1 })
    return evaluate(id)
  }
}

const oursOnOne = ({ run }: Stage["ours"]): Contestant =>
  onOneAggregate("ours", deposit(run), (id) => run(Account.fetch(id)))

const emmettOnOne = ({ store }: Stage["emmett"], retry: CommandHandlerRetryOptions): Contestant =>
  onOneAggregate("emmett", emmettDeposit(store, retry), async (id) => {
    const { state } = await store.aggregateStream<Balance, EmmettDeposited>(id, emmettAccount)
    return state
  })

/**
 * One aggregate for all clients. It is empty when the turn begins, and must have every acknowledged event at its end.
 */
const onOneAggregate = (
  name: Contestant["name"],
  evaluate: Evaluate,
  load: (id: string) => Promise<Balance>
): Contestant => ({
  name,
  round: async (clients, seconds) => {
    const id = randomUUID()
    const round = await workFor(() => evaluate(id), clients, seconds)
    const { balance } = await load(id)
    if (balance !== round.latencies.length) {
      throw new Error(`${name}: ${round.latencies.length} commands acknowledged, ${balance} applied`)
    }
    return round
  }
})
