/**
 * The reference `Aggregate.Metadata`. It is here, and not in `Aggregate.ts`, because `service.ts` reads it.
 */
import * as Context from "effect/Context"

export class Metadata extends Context.Reference<Metadata>()("effect-maestro/Aggregate/Metadata", {
  defaultValue: (): Readonly<Record<string, unknown>> => ({})
}) {}
