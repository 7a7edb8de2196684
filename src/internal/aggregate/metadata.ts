/**
 * The reference `Aggregate.Metadata`. It is here, and not in `Aggregate.ts`, because `service.ts` reads it.
 */
import * as Context from "effect/Context"

/** What the reference has where the application sets nothing. */
export const noMetadata: Readonly<Record<string, unknown>> = Object.freeze({})

/**
 * The metadata of every event of a command: who asked, on whose behalf, why. All keys are the application's own, and are
 * stored as they are given. Set it around `evaluate`, by `Effect.provideService(Aggregate.Metadata, { userId })`.
 */
export class Metadata extends Context.Reference<Metadata>()("effect-maestro/Aggregate/Metadata", {
  defaultValue: () => noMetadata
}) {}
