/**
 * What the text of a statement tells of what it does.
 */

/**
 * Whether it is a matter of more than its own rows: the log, where events of others stand that are not projected yet; what holds until
 * the end of the transaction, and so for those who come after; and the transaction itself.
 */
export const concernsOthers = (text: string): boolean =>
  theirs.test(text) || aboutTransactions.test(text) || aboutTransactions.test(withoutComments(text))

/** Whether it is one statement that only reads and writes rows of its own: it can't end the transaction, or have the client send more. */
export const isPlain = (text: string): boolean => rows.test(text) && !several.test(text) && !theirs.test(text)

// --- internal ---

const theirs = /\b(event_log|commit_events|set_config)\b/i

const aboutTransactions = /(?:^|;)\s*(set|reset|discard|begin|start|commit|end|abort|prepare|rollback(?!\s+to\b))\b/i

const withoutComments = (text: string): string =>
  text.includes("/*") || text.includes("--") ? text.replace(/\/\*[\s\S]*?\*\/|--.*/g, " ") : text

const rows = /^\s*(insert|update|delete|merge|select|with|values)\b/i

const several = /;\s*\S/
