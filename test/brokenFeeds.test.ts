/** The contract of the feed and of subscriptions detects faults: each broken store fails the case that it breaks. */
import * as SqlClient from "@effect/sql/SqlClient"
import { describe, expect, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as TestContext from "effect/TestContext"
import { EventFeed, SqlStore, StoreAdapter, SubscriptionStore } from "effect-maestro"
import * as FeedContract from "effect-maestro/FeedContract"
import { inject } from "vitest"
import { onRealClock } from "../src/internal/contract/case.js"
import * as Broken from "./brokenFeeds.js"
import * as BrokenSubscriptions from "./brokenSubscriptions.js"
import * as BrokenTimes from "./brokenTimes.js"
import { layerPg } from "./database.js"

const all = FeedContract.cases({ runs: 20, seed: 1 })

// The contract of the store in memory has more random programs.
const onMemory = FeedContract.cases({ runs: 4, seed: 1 }).filter(
  ({ needs }) => needs !== "callerTransaction" && needs !== "transactionalEffects"
)

// The cases about large input and many events take long, and neither other events nor overlaps concern them.
const isQuick = ({ name }: FeedContract.Case) => !/exactly as it was|large|thousand|bad /.test(name)

/** The cases without subscriptions. */
const ofTheFeed = onMemory.filter(({ name }) =>
  /^(read|head|heldBack|count|positionOf|samples|awaitAppend|filter|stream|streamStored|order|random|every operation of the feed)\b/.test(
    name
  )
)

/** The name of its export, as words. */
const nameOf = (breaking: Broken.Breaking): string =>
  Object.entries({ ...Broken, ...BrokenSubscriptions, ...BrokenTimes })
    .find(([, exported]) => exported === breaking)?.[0]
    .replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`) ?? "has no name"

const contextOf = ({ feed, store, subscriptions }: Broken.Ports) =>
  Context.make(StoreAdapter.StoreAdapter, store).pipe(
    Context.add(EventFeed.EventFeed, feed),
    Context.add(SubscriptionStore.SubscriptionStore, subscriptions)
  )

/** The names of the cases that fail, each on ports of its own. */
const failing = <R>(
  make: Effect.Effect<Broken.Ports, never, R>,
  cases: ReadonlyArray<FeedContract.Case>,
  timeout: Duration.DurationInput = "2 seconds"
) =>
  Effect.filter(cases, ({ run }) =>
    Effect.flatMap(make, (ports) =>
      run.pipe(
        Effect.provide(contextOf(ports)),
        Effect.provide(TestContext.TestContext),
        // A broken store may wait without end.
        Effect.timeoutFail({ duration: timeout, onTimeout: () => "it hangs" }),
        onRealClock,
        Effect.exit,
        Effect.map(Exit.isFailure)
      )
    )
  ).pipe(Effect.map((failed) => failed.map(({ name }) => name)))

const named = (name: string): FeedContract.Case => {
  const found = all.find((one) => one.name === name)
  if (found === undefined) throw new Error(`the contract has no case ${JSON.stringify(name)}`)
  return found
}

it.live("a correct store passes, also a second time", () =>
  Effect.gen(function* () {
    const ports = yield* Broken.memory
    // `feedContract.test.ts` runs the others.
    for (const cases of [onMemory.filter(isQuick), onMemory.filter(isQuick)]) {
      expect(yield* failing(Effect.succeed(ports), cases, "10 seconds")).toEqual([])
    }
  })
)

it.live("a correct feed with overlapping transactions passes", () =>
  Effect.gen(function* () {
    const make = Effect.map(Broken.memory, Broken.overlaps)
    expect(yield* failing(make, ofTheFeed.filter(isQuick), "10 seconds")).toEqual([])
  })
)

const order = (how: string) =>
  `order under overlapping transactions (${how}): each stream keeps its sequence when a transaction continues with an aggregate of a later one`
const everyEvent =
  "read: every committed event appears exactly once, and pages of any limit concatenate to the same order"
const samplesOfEach = "samples: have an event of each kind, type and version, exactly as read shows it, and few of each"
const readIsOnesOwn =
  "read: a caller may change an event without changing the stored one, or another event that was read"
const streamIsOnesOwn =
  "stream, streamStored: a caller may change an event without changing the stored one, or the events after it"
const notSkipped = "read (commitAll): events of a transaction that began first and commits last are not skipped"
const largePages =
  "read: a page of large events ends before 8 MB and has at least one event, and `more` is true if events follow"
const heldBack =
  "heldBack (commitAll): counts the committed events that an older transaction holds back, since the first of them"
const leftOut = "read: as of a time it leaves out the events that were made later, which may stand before others"
const ofThatMillisecond = "read: as of a time it has all events of that millisecond, and none of the next"
const parkedStay = "repartition: parked events stay parked, each in the partition of its aggregate, and can be retried"
const takenOver = "lease: a lease that another holder has taken over fails with LeaseLost, and stores nothing"

const caught: ReadonlyArray<readonly [breaking: Broken.Breaking, sentences: ReadonlyArray<string>]> = [
  [
    Broken.ordersByTransactionAlone,
    [
      order("commitAll"),
      "order under overlapping transactions (commitAll): each stream keeps its sequence when three transactions nest",
      "order under overlapping transactions: random programs whose transactions continue with other aggregates"
    ]
  ],
  [Broken.forgetsTheOrderOfATransaction, [order("commitAll")]],
  [Broken.skipsWhatCommitsLate, [notSkipped]],
  [Broken.doesNotWaitForOlderTransactions, [notSkipped]],
  [
    Broken.showsUncommittedEvents,
    [
      "read: shows no event of an open commit, and all of them once it has committed",
      "read: a commit that fails never appears, and leaves no hole to wait at"
    ]
  ],
  [
    Broken.showsWhatWasRolledBack,
    ["fails", "dies", "is interrupted"].map(
      (ending) => `read: a commit that ${ending} never appears, and leaves no hole to wait at`
    )
  ],
  [
    Broken.showsATransactionItsOwnEvents,
    ["read (commitAll): inside a transaction it shows committed events of other transactions, and no uncommitted ones"]
  ],
  [Broken.showsAnEventTwiceAtPageBorders, [everyEvent]],
  [Broken.readsFromThePositionOn, ["read: reading can continue after the position of a page, and of each event"]],
  [Broken.sortsTheEventsOfACommit, ["read: events that one commit writes appear in the order that it was given"]],
  [Broken.losesByteOrderMarks, ["read: an event is read exactly as it was committed, with any id, type and metadata"]],
  ...[Broken.ignoresTheCorrelationId, Broken.comparesCorrelationIdsLoosely].map(
    (breaking) =>
      [breaking, ["filter: a correlation id shows the events of its chain, on all aggregates, and no others"]] as const
  ),
  ...[Broken.losesVersions, Broken.losesCorrelationIds, Broken.losesCausationIds, Broken.losesTraceparents].map(
    (breaking) =>
      [
        breaking,
        ["read: an event has the version, correlationId, causationId and traceparent that were committed"]
      ] as const
  ),
  [BrokenTimes.readsAsOfNow, [leftOut, ofThatMillisecond]],
  [BrokenTimes.endsAtTheFirstLaterEvent, [leftOut]],
  [BrokenTimes.leavesOutTheMillisecondOfATime, [leftOut, ofThatMillisecond]],
  [BrokenTimes.countsAsOfNow, ["count: as of a time it returns the number of events that read shows"]],
  [Broken.ignoresTheSlice, ["filter: the slices partition the feed, and an aggregate is always in the same one"]],
  [Broken.takesAnyPartOfTheFilter, ["filter: an event must match all its parts"]],
  ...[Broken.takesAnIdForItsKind, Broken.endsAKindAtTheLastSlash].map(
    (breaking) =>
      [
        breaking,
        ["filter: the kind is the text before the first slash of an aggregateId, or empty without such a text"]
      ] as const
  ),
  [Broken.comparesKindsLoosely, ["filter: kinds that differ only in case or Unicode form are different kinds"]],
  [Broken.endsAtAnEmptyPage, ["filter: an event behind ten thousand hidden ones is found"]],
  [Broken.hasItsHeadAheadOfWhatItShows, ["head: is the position of the last event that the feed shows"]],
  [
    Broken.countsWhatTheFilterHides,
    ["count: returns the number of events that read shows after the position, with the same filter"]
  ],
  [
    Broken.findsThePositionOfAnotherEvent,
    ["positionOf: is the position that the feed shows the event at; none where there is no such event"]
  ],
  [Broken.countsAThousandAtMost, ["count: counts beyond a thousand events"]],
  [Broken.samplesTypesWithoutVersions, [samplesOfEach]],
  [Broken.samplesTypesWithoutKinds, [samplesOfEach]],
  [
    Broken.samplesWhatTheKindsHide,
    [
      "samples: with kinds, only events of aggregates of these kinds; an empty list selects none",
      "samples: a bad list of kinds fails with a ValidationError that has its path"
    ]
  ],
  [
    Broken.samplesOnePageOfTheFeed,
    ["samples: a type of one event is found among twelve thousand events and several hundred types"]
  ],
  [Broken.cutsLargeSamples, ["samples: a large event is as complete as a small one"]],
  [Broken.samplesEveryEvent, [samplesOfEach]],
  [Broken.findsThePositionsOfFiftyEvents, ["positionOf: finds an event at any sequence of a long stream"]],
  [Broken.sharesTheEventsOfItsPages, [readIsOnesOwn, streamIsOnesOwn]],
  [Broken.sharesTheMetadataOfAPage, [readIsOnesOwn, streamIsOnesOwn]],
  [Broken.takesAnyLimit, ["read: a bad position, limit or filter fails with a ValidationError that has its path"]],
  [Broken.countsPagesInEvents, [largePages]],
  [Broken.leavesOutWhatIsLargerThanAPage, [largePages]],
  [Broken.keepsQuietOfWhatIsHeldBack, [heldBack]],
  [
    Broken.holdsBackWhatTheFilterHides,
    [heldBack, "heldBack: a bad filter fails with a ValidationError that has its path"]
  ],
  [Broken.wakesOneWaiter, ["awaitAppend: wakes every waiter, also when other waiters were interrupted"]],
  [
    Broken.forgetsWaitersWhenOneIsInterrupted,
    ["awaitAppend: wakes every waiter, also when other waiters were interrupted"]
  ],
  [
    Broken.leadsPastWhatIsNew,
    [
      "awaitAppend: with a filter its position skips hidden events only",
      "stream: shows stored events and then new ones, each once, in the order of the feed"
    ]
  ],
  [
    BrokenSubscriptions.movesOnThoughTheEffectFails,
    ["advance: it ends as its effect does, which fails, dies or is interrupted, and the checkpoint stays"]
  ],
  [
    BrokenSubscriptions.hasTwoHoldersAtATime,
    [
      "lease: a subscription has one holder at a time, and a second request waits until the scope of the first ends",
      "lease: concurrent requests get the lease one after another, and each gets it"
    ]
  ],
  [
    BrokenSubscriptions.hasNoFencing,
    [takenOver, "repartition: a lease from before is lost, also when there are as many partitions again"]
  ],
  [
    BrokenSubscriptions.checksTheLeaseOnlyAtFirst,
    ["advance: a lease that is lost while the effect runs fails it with LeaseLost, and the checkpoint stays"]
  ],
  [
    BrokenSubscriptions.keepsTheLeaseForAnInterruptedRequest,
    ["lease: interrupting a waiting request affects neither the holder nor the next request"]
  ],
  [
    BrokenSubscriptions.beginsWhereItIsTold,
    ["lease: a subscription begins at `from` the first time, and at its checkpoint later"]
  ],
  [
    BrokenSubscriptions.takesAnyPosition,
    ["lease, awaitPosition: a bad position fails with a ValidationError that has its path"]
  ],
  [BrokenSubscriptions.mixesNames, ["lease: names and partitions have leases and checkpoints of their own"]],
  [
    BrokenSubscriptions.takesAnyNumberOfPartitions,
    ["lease: another number of partitions is refused, also while there is a holder"]
  ],
  [
    BrokenSubscriptions.forgetsThatItStopped,
    [
      "stop: no request gets the lease until the subscription is resumed, which then continues at its checkpoint",
      "stop: a request that waits for the lease already does not get it either"
    ]
  ],
  [
    BrokenSubscriptions.keepsAFailureThatIsTakenOff,
    ["recordFailure: the last failure is stored exactly, and can be removed"]
  ],
  [
    BrokenSubscriptions.countsAttemptsForOneHolderOnly,
    [
      "recordAttempt, recordFailure: the next holder finds the attempts, until the checkpoint advances or the failure is removed"
    ]
  ],
  [
    BrokenSubscriptions.keepsAttemptsThatLedOn,
    [
      "recordAttempt, recordFailure: the next holder finds the attempts, until the checkpoint advances or the failure is removed",
      "resume: the attempts at the event that the subscription stopped at begin at zero again"
    ]
  ],
  [
    BrokenSubscriptions.forgetsAnEventWhoseEffectFails,
    ["retryParked: an effect that succeeds removes the event from the parked ones, and one that fails leaves it parked"]
  ],
  [
    BrokenSubscriptions.discardsWhatIsNotThere,
    ["retryParked, discardParked: return false for an event that is not parked, and run nothing"]
  ],
  [BrokenSubscriptions.blocksAllAggregates, ["parkedAggregates: returns the given aggregates that have events parked"]],
  [
    BrokenSubscriptions.reachesByOnePartition,
    ["awaitPosition: waits for all partitions, including partitions that have never run"]
  ],
  [
    BrokenSubscriptions.waitsForAllPartitions,
    ["awaitPosition: for an aggregate it waits for one partition, which is the slice of the aggregate"]
  ],
  [
    BrokenSubscriptions.keepsNodesThatHaveLeft,
    ["join: a node and the nodes that joined before see each other, until the scope of one closes"]
  ],
  [BrokenSubscriptions.joinsThoughInterrupted, ["join: a node that is interrupted while it joins has left"]],
  [
    BrokenSubscriptions.forgetsWhatANodeWants,
    ["look: shows how many partitions the store has, none before the first lease, and how many each node wants"]
  ],
  [
    BrokenSubscriptions.makesOnePartitionAtATime,
    ["lease: the first lease of a subscription makes all its partitions, at its position"]
  ],
  [
    BrokenSubscriptions.repartitionsFromTheBeginning,
    ["repartition: the new partitions begin where all were, and leases of the earlier number are refused"]
  ],
  [BrokenSubscriptions.losesParkedEventsByRepartition, [parkedStay]],
  [BrokenSubscriptions.leavesParkedEventsInTheirPartition, [parkedStay]],
  [
    BrokenSubscriptions.repartitionsWhateverTheState,
    ["repartition: does nothing while a partition is elsewhere, leased, stopped or retrying, or a node wants another"]
  ],
  [BrokenSubscriptions.claimsWhatAnotherNodeDid, ["repartition: of several nodes one at most replaces the partitions"]],
  [
    BrokenSubscriptions.keepsAssignmentsOfOldPartitions,
    ["repartition: leaves no assignments, and the nodes look within a third of the duration"]
  ],
  [
    BrokenSubscriptions.waitsForWhateverNumber,
    ["repartition: a wait for a lease of the earlier number fails with PartitionsChanged"]
  ],
  [BrokenSubscriptions.forgetsWhatANodeDeclines, ["look: shows what each node declines, as of its last look"]],
  [
    BrokenSubscriptions.assignsBlindly,
    ["assign: changes what still is as the node has seen it, and leaves what another node has changed"]
  ],
  [BrokenSubscriptions.assignsForItselfOnly, ["assign: every node sees the assignments, which outlive the node"]],
  [
    BrokenSubscriptions.looksOnlyOnce,
    ["due: after a node has joined or left and after an assignment the other nodes look within a third of the duration"]
  ],
  [BrokenSubscriptions.forgetsSinceWhen, ["partitions: shows since when a lease is held, until it is released"]]
]

for (const [breaking, sentences] of caught) {
  it.live(
    `a store that ${nameOf(breaking)} is caught`,
    () =>
      Effect.gen(function* () {
        const make = Effect.map(Broken.memory, breaking)
        expect(yield* failing(make, sentences.map(named))).toEqual(sentences)
      }),
    // Many of them wait for a time limit.
    { concurrent: true }
  )
}

const onPostgres = Effect.map(
  Effect.all({
    store: StoreAdapter.StoreAdapter,
    feed: EventFeed.EventFeed,
    subscriptions: SubscriptionStore.SubscriptionStore
  }),
  (ports): Broken.Ports => ports
)

describe("on Postgres", () => {
  layer(Layer.provideMerge(SqlStore.layer, layerPg()), { excludeTestServices: true, timeout: 60_000 })((it) => {
    it.effect("a store that runs the effect outside of the transaction fails", () =>
      Effect.gen(function* () {
        const sentences = [
          ...["fails", "dies", "is interrupted"].map(
            (ending) => `advance: events that an effect which ${ending} has committed are undone, and never shown`
          ),
          "parked: an effect that fails parks nothing"
        ]
        const make = Effect.map(onPostgres, BrokenSubscriptions.runsTheEffectOutsideOfTheTransaction)
        expect(yield* failing(make, sentences.map(named), "10 seconds")).toEqual(sentences)
        expect(yield* failing(onPostgres, sentences.map(named), "10 seconds")).toEqual([])
      })
    )

    it.effect.skipIf(inject("feedOrder") === "counter")(
      "a store whose feed key is the id of the transaction fails",
      () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const [key] = yield* sql<{ name: string }>`select column_name as name from information_schema.columns
          where table_schema = 'maestro' and table_name = 'event_log' and data_type = 'xid8'`
          yield* sql`create function order_by_transaction() returns trigger language plpgsql as $$
          begin
            new.${sql(key?.name ?? "")} := pg_current_xact_id();
            return new;
          end $$`
          yield* sql`create trigger order_by_transaction before insert or update on maestro.event_log
          for each row execute function public.order_by_transaction()`
          const sentences = [order("commitAll"), order("caller's transaction")]
          const run = failing(onPostgres, sentences.map(named), "10 seconds")
          expect(yield* run).toEqual(sentences)
        })
    )
  })
})
