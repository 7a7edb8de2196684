/** The aggregate of `processes.ts` in the cluster, for its runners and its clients. */
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { Account } from "../aggregates/Account.js"

export const Accounts = ClusterAggregate.make(Account, { timeout: "30 seconds", resendAfter: "2 seconds" })
