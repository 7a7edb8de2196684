/**
 * The difference of two lists of lines, for the messages of failed assertions.
 */

/** All lines of both lists in order: `- ` before one that only the first has, `+ ` before one that only the second has. */
export const differenceOf = (expected: ReadonlyArray<string>, got: ReadonlyArray<string>): ReadonlyArray<string> => {
  const [first, second] = [expected.flatMap(linesOf), got.flatMap(linesOf)]
  if (first.length * second.length > maxCells) {
    return [...first.map((line) => `- ${line}`), ...second.map((line) => `+ ${line}`)]
  }
  const common = commonLengths(first, second)
  const difference: Array<string> = []
  let [i, j] = [0, 0]
  while (i < first.length || j < second.length) {
    if (i < first.length && j < second.length && first[i] === second[j]) {
      difference.push(`  ${first[i]}`)
      i++
      j++
    } else if (i < first.length && (j >= second.length || at(common, i + 1, j) >= at(common, i, j + 1))) {
      difference.push(`- ${first[i]}`)
      i++
    } else {
      difference.push(`+ ${second[j]}`)
      j++
    }
  }
  return difference
}

// --- internal ---

/** Above this the lists are shown one after the other. */
const maxCells = 1_000_000

const linesOf = (text: string): ReadonlyArray<string> => text.split("\n")

const at = (table: ReadonlyArray<ReadonlyArray<number>>, i: number, j: number): number => table[i]?.[j] ?? 0

/** The length of the longest common subsequence of the lines from `i` and from `j` on. */
const commonLengths = (
  first: ReadonlyArray<string>,
  second: ReadonlyArray<string>
): ReadonlyArray<ReadonlyArray<number>> => {
  const table: Array<Array<number>> = Array.from({ length: first.length + 1 }, () =>
    new Array<number>(second.length + 1).fill(0)
  )
  for (let i = first.length - 1; i >= 0; i--) {
    const row = table[i]
    if (row === undefined) continue
    for (let j = second.length - 1; j >= 0; j--) {
      row[j] = first[i] === second[j] ? at(table, i + 1, j + 1) + 1 : Math.max(at(table, i + 1, j), at(table, i, j + 1))
    }
  }
  return table
}
