/**
 * Fresh ids: made by `newId` in this process, and not used yet.
 *
 * `stateCache.ts` takes the initial state of a fresh id for its cached state, so that its first command does not read
 * the store. Another process may have used the id all the same. So that state is only as trusted as every cached state:
 * the store refuses events at a sequence that is taken, and a refusal is checked against the store.
 */

/** The fresh ids of an aggregate. */
export interface FreshIds {
  readonly add: (id: string) => void
  /** Whether the id is fresh. It is not any more afterwards. */
  readonly consume: (id: string) => boolean
}

export const makeFreshIds = (): FreshIds => {
  const ids = new Set<string>()
  return {
    add: (id) => {
      ids.add(id)
      if (ids.size <= maxFreshIds) return
      for (const oldest of ids) {
        ids.delete(oldest)
        return
      }
    },
    consume: (id) => ids.delete(id)
  }
}

// --- internal ---

/** Beyond this number the oldest is forgotten, so that its first command reads the store. */
const maxFreshIds = 10_000
