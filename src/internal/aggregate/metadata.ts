/**
 * The reference `Aggregate.Metadata`. It is here, and not in `Aggregate.ts`, because `service.ts` reads it.
 */
import * as Context from "effect/Context"

/** What the reference has where the application sets nothing. */
export const noMetadata: Readonly<Record<string, unknown>> = Object.freeze({})

export class Metadata extends Context.Reference<Metadata>()("effect-maestro/Aggregate/Metadata", {
  defaultValue: () => noMetadata
}) {}
