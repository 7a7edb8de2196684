/** The rules of accounts, and the table of balances: given events, when a command, then events. */
import * as AggregateTest from "effect-maestro/AggregateTest"
import { beforeAll, describe, it } from "vitest"
import {
  Account,
  Balances,
  Deposit,
  Deposited,
  InsufficientFunds,
  NotOpen,
  Opened,
  Withdraw,
  Withdrawn
} from "../src/Account.js"

const opened = AggregateTest.of(Account).given(new Opened({ owner: "Ann" }), new Deposited({ amount: 100 }))

describe("an account", () => {
  it("must be open before money comes", () => {
    AggregateTest.of(Account)
      .when(new Deposit({ amount: 1 }))
      .thenFails(new NotOpen())
  })

  it("pays out what is there", () => {
    opened
      .when(new Withdraw({ amount: 30 }))
      .thenEvents(new Withdrawn({ amount: 30 }))
      .thenState({ owner: "Ann", balance: 70 })
  })

  it("pays out no more than is there", () => {
    opened.when(new Withdraw({ amount: 101 })).thenFails(new InsufficientFunds({ balance: 100 }))
  })
})

describe("the table of balances", () => {
  // The first start of the embedded Postgres takes some seconds.
  beforeAll(AggregateTest.startDatabase, 60_000)

  it("has the balance of each account", async () => {
    await opened
      .given(new Withdrawn({ amount: 30 }))
      .project(Balances)
      .thenRows("select owner, balance from balances", [{ owner: "Ann", balance: 70 }])
  })
})
