/**
 * Two players move in one game at the same moment, so that a conflict happens.
 *
 * An instance of an aggregate decides its commands one at a time. So each player has an instance of its own, as two
 * processes would have.
 */

import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import { StoreAdapter, StoreError } from "effect-maestro"
import { Game, PlayMove, StartGame } from "./Game.js"

/** Plays both moves as ply 1 of a new game, and prints the result of each. */
export const show = Effect.gen(function* () {
  const id = yield* Game.newId
  yield* Game.evaluate(id, newGame)
  yield* Console.log(`\nTwo hands play ply 1 of a new game (${id}) at the same moment`)
  const meet = yield* makeMeeting(2)
  yield* Effect.all(
    [hand("left", "e4"), hand("right", "d4")].map((play) => play(id, meet)),
    { concurrency: 2 }
  )
})

// --- internal ---

const player = (name: string) => ({ name, rating: null })

// It never ends, so that no table of results counts it.
const newGame = new StartGame({
  white: player("Two hands"),
  black: player("Two hands"),
  event: "Demonstration",
  site: null,
  playedAt: null,
  timeControl: null,
  eco: null,
  opening: null,
  fen: null
})

/** One of the players: an instance of the aggregate, on a store that counts its lost races. */
const hand = (name: string, san: string) => (id: string, meet: Effect.Effect<void>) =>
  Effect.gen(function* () {
    const conflicts = yield* Ref.make(0)
    const instance = Layer.fresh(Game.layer).pipe(Layer.provide(layerContested(meet, conflicts)))
    const outcome = yield* Game.evaluate(id, new PlayMove({ ply: 1, san })).pipe(
      Effect.map(() => "it is on the board"),
      Effect.catchTag("WrongPly", ({ message }) => Effect.succeed(`refused: ${message}`)),
      Effect.provide(instance)
    )
    // After each conflict the aggregate decides once more, on the new position.
    const decisions = (yield* Ref.get(conflicts)) + 1
    const how = decisions === 1 ? "decided once" : `came second, so decided ${decisions} times`
    yield* Console.log(`  ${name.padEnd(5)} ${san}: ${how}; ${outcome}`)
  })

/**
 * A store around the store. It holds each commit until both players have decided, and counts the commits that lost. A
 * decorator is a layer that needs the service that it provides.
 */
const layerContested = (meet: Effect.Effect<void>, conflicts: Ref.Ref<number>) =>
  Layer.effect(
    StoreAdapter.StoreAdapter,
    Effect.map(StoreAdapter.StoreAdapter, (store) => ({
      ...store,
      commitAll: (events, projections) =>
        Effect.zipRight(meet, store.commitAll(events, projections)).pipe(
          Effect.tapError((error) =>
            error instanceof StoreError.RetryCommand ? Ref.update(conflicts, (count) => count + 1) : Effect.void
          )
        )
    }))
  )

/** Makes an effect that waits until so many fibers run it. Fibers that run it later do not wait. */
const makeMeeting = (parties: number): Effect.Effect<Effect.Effect<void>> =>
  Effect.zipWith(Effect.makeLatch(), Ref.make(0), (latch, arrived) =>
    Ref.updateAndGet(arrived, (count) => count + 1).pipe(
      Effect.flatMap((count) => (count === parties ? latch.open : Effect.void)),
      Effect.zipRight(latch.await)
    )
  )
