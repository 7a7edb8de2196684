/**
 * Registers the cases of a contract with vitest.
 */
import { layer as withLayer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import type * as Layer from "effect/Layer"
import type { Case } from "./case.js"

/**
 * Registers the cases as one block of that name, on a layer that is built once for all of them. A case that needs a
 * capability that the store lacks is shown as skipped, with the reason. Everything runs on the live clock.
 */
export const register = <R, A, E, C extends string>(
  name: string,
  layer: Layer.Layer<R | A, E>,
  cases: ReadonlyArray<Case<R, C>>,
  options: { readonly lacks?: ReadonlyArray<C> | undefined; readonly timeout?: Duration.DurationInput | undefined } = {}
): void => {
  const timeout = options.timeout ?? "60 seconds"
  withLayer(layer, { timeout, excludeTestServices: true })(name, (it) => {
    for (const { name, needs, run } of cases) {
      if (needs !== undefined && options.lacks?.includes(needs)) {
        it.effect.skip(`${name} (this store lacks ${needs})`, () => run)
      } else {
        it.effect(name, () => run, Duration.toMillis(timeout))
      }
    }
  })
}
