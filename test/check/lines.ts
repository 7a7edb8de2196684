/** The lines in which two texts differ, for checks of files that a script writes. */

/** The lengths of the longest common subsequences of all ends of the two lists. */
const commonLengths = (a: ReadonlyArray<string>, b: ReadonlyArray<string>): ReadonlyArray<Uint32Array> => {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1))
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const row = lengths[i] ?? new Uint32Array()
      row[j] =
        a[i] === b[j]
          ? (lengths[i + 1]?.[j + 1] ?? 0) + 1
          : Math.max(lengths[i + 1]?.[j] ?? 0, lengths[i]?.[j + 1] ?? 0)
    }
  }
  return lengths
}

/** The lines that are gone (`-`) and new (`+`), each below its number. No lines if the texts are equal. */
export const differences = (before: string, after: string): ReadonlyArray<string> => {
  const a = before.split("\n")
  const b = after.split("\n")
  const lengths = commonLengths(a, b)
  const lines: Array<string> = []
  let i = 0
  let j = 0
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      i++
      j++
    } else if (j >= b.length || (i < a.length && (lengths[i + 1]?.[j] ?? 0) >= (lengths[i]?.[j + 1] ?? 0))) {
      lines.push(`${i + 1} - ${a[i++]}`)
    } else {
      lines.push(`${j + 1} + ${b[j++]}`)
    }
  }
  return lines
}
