/**
 * The ids that this process has made up and not used yet. Nobody else can know them, or hardly: their aggregates need not be looked
 * for in the store. Somebody may all the same, so it is trusted only as far as a state that is kept.
 */

/** Ids of which each is known until it is used. */
export interface FreshIds {
  readonly add: (id: string) => void
  /** Whether the id was made here and is used for the first time. */
  readonly take: (id: string) => boolean
}

export const makeFreshIds = (): FreshIds => {
  const ids = new Set<string>()
  return {
    add: (id) => {
      ids.add(id)
      if (ids.size <= maxMinted) return
      for (const oldest of ids) {
        ids.delete(oldest)
        return
      }
    },
    take: (id) => ids.delete(id)
  }
}

// --- internal ---

/** Whoever makes more of them before using the first reads the store for that one. */
const maxMinted = 10_000
