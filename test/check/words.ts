/** The words that comments, strings and guides do not use: `prose.ts` looks for them. */

/** Patterns, in which a space matches a line break, too, and what to write instead. */
export const forbidden: ReadonlyArray<readonly [pattern: string, instead: string]> = [
  [
    "whoever|somebody|someone|anybody|anyone|everybody|everyone",
    "the caller, the fiber, the connection: the thing that acts"
  ],
  ["nobody|no one(?! of)", "no caller, no fiber, no connection"],
  ["whatever (?:is|was|has|had|does|did|can|may|comes|happens|goes|stands|holds)", "each … that"],
  ["those who|those that|those which", "the callers that, the events that: the noun"],
  ["at once", "immediately, or concurrently"],
  ["the same as", "equal to, like"],
  ["comes? to(?! (?:an end|rest))|came to|coming to", "the technical verb: returns, reaches, ends with"],
  ["(?:is|are|was|were|be|been|being|not|gets?) told|tells whether", "returns, receives, is notified, shows"],
  ["strangers?", "another caller, other callers"],
  ["in company", "in a batch"],
  ["goes alone|go alone|went alone", "is committed in a transaction of its own"],
  ["travel(?:s|led|ling)?", "is sent, is committed, is passed"],
  ["short ways?", "fast path"],
  ["one's own|of our own|of one's", "its own, a new"],
  ["set aside|sets aside|setting aside", "parked"],
  ["taken back|takes? back|took back", "retried, retry parked"],
  ["kept states?", "cached state"],
  ["seats?", "entry, aggregate, batch size"],
  ["tickets?", "lock request"],
  ["(?:un)?mint(?:ed|s|ing)?", "fresh id, makes an id"],
  ["lanes?", "connection, queue"],
  ["departures?", "batch in flight"],
  ["patience|patient(?:ly)?", "time limit, grace period"],
  [
    "may pass|passing(?= (?:failures?|errors?|faults?|troubles?|ones?|defects?))|(?:is|are|was|as|be|of) passing",
    "transient"
  ],
  ["a while|for good|in vain", "the duration, permanently, without effect"],
  ["in the end", "finally, at last"],
  ["—", "a comma, a colon or a new sentence"]
]
