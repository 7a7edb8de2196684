/**
 * Signals: hints that events were stored, with their types and kinds, so that only those readers wake whose filter may match.
 * `notifications.ts` sends them, and `headWatcher.ts` wakes readers by them.
 */
import { identityOf, type StoredEvent } from "../../Event.js"
import type { Filter } from "../../EventFeed.js"

/** The types and kinds of some events, each name once. Undefined where they are not known. */
export type Contents = { readonly types: ReadonlyArray<string>; readonly kinds: ReadonlyArray<string> } | undefined

export interface Signal {
  readonly contents: Contents
  /** Whether the transaction of the events may still be open, so that a read that begins now can't see them. */
  readonly isOpen: boolean
}

export const contentsOf = (events: ReadonlyArray<Pick<StoredEvent, "aggregateId" | "type">>): Contents => {
  const [only] = events
  if (only !== undefined && events.length === 1) {
    return { types: [only.type], kinds: [identityOf(only.aggregateId).kind] }
  }
  return {
    types: [...new Set(events.map(({ type }) => type))],
    kinds: [...new Set(events.map(({ aggregateId }) => identityOf(aggregateId).kind))]
  }
}

/** Whether the filter may let through one of the events. A slice and a chain are not compared. */
export const mayMatch = (contents: Contents, filter: Filter | undefined): boolean =>
  contents === undefined ||
  filter === undefined ||
  ((filter.types === undefined || filter.types.some((type) => contents.types.includes(type))) &&
    (filter.kinds === undefined || filter.kinds.some((kind) => contents.kinds.includes(kind))))

/** Collects signals into the payload of one notification. */
export class PendingSignals {
  private isOpen = true
  private isUnknown = false
  private readonly types = new Set<string>()
  private readonly kinds = new Set<string>()

  add({ contents, isOpen }: Signal): void {
    this.isOpen &&= isOpen
    if (contents === undefined) this.isUnknown = true
    if (contents === undefined || this.isUnknown) return
    for (const type of contents.types) this.types.add(type)
    for (const kind of contents.kinds) this.kinds.add(kind)
    if (this.types.size + this.kinds.size > maxNames) this.isUnknown = true
  }

  /** What `signalOf` reads. `from` is the listener that sends it. */
  payload(from: string): string {
    const { isOpen } = this
    const short = JSON.stringify({ from, isOpen })
    if (this.isUnknown) return short
    const whole = JSON.stringify({ from, isOpen, types: [...this.types], kinds: [...this.kinds] })
    return new TextEncoder().encode(whole).length > maxPayload ? short : whole
  }
}

/** The signal of a payload, and the listener that sent it. Where the payload has no names, the contents are not known. */
export const signalOf = (payload: string | undefined): Signal & { readonly from: string } => {
  const { from, isOpen, kinds, types } = parse(payload)
  return {
    from: typeof from === "string" ? from : "",
    isOpen: isOpen === true,
    contents: isNames(types) && isNames(kinds) ? { types, kinds } : undefined
  }
}

/** Remembers the last signal of each type and of each kind, by the number of the signal. */
export class SignalLog {
  /** The number of signals until now. */
  count = 0
  private unknown = 0
  private readonly types = new Map<string, number>()
  private readonly kinds = new Map<string, number>()

  add(contents: Contents): void {
    this.count++
    if (contents === undefined) {
      this.unknown = this.count
      return
    }
    for (const type of contents.types) this.types.set(type, this.count)
    for (const kind of contents.kinds) this.kinds.set(kind, this.count)
    if (this.types.size + this.kinds.size <= maxNames) return
    this.types.clear()
    this.kinds.clear()
    this.unknown = this.count
  }

  /** Whether the filter may let through an event of a signal after that number. */
  mayMatchSince(number: number, filter: Filter | undefined): boolean {
    const isLater = (names: ReadonlyMap<string, number>) => (name: string) => (names.get(name) ?? 0) > number
    return (
      this.unknown > number ||
      (this.count > number &&
        (filter?.types === undefined || filter.types.some(isLater(this.types))) &&
        (filter?.kinds === undefined || filter.kinds.some(isLater(this.kinds))))
    )
  }
}

// --- internal ---

/** How many names are remembered. Beyond that number the contents count as not known. */
const maxNames = 500

/** In bytes. The server refuses a payload of 8000. */
const maxPayload = 7000

const parse = (payload: string | undefined): { readonly [key: string]: unknown } => {
  try {
    const parsed: unknown = JSON.parse(payload ?? "")
    return typeof parsed === "object" && parsed !== null ? { ...parsed } : {}
  } catch {
    return {}
  }
}

const isNames = (u: unknown): u is ReadonlyArray<string> =>
  Array.isArray(u) && u.every((name) => typeof name === "string")
