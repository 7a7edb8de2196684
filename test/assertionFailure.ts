/** The message of a failed assertion of the test kit, for the tests of the kit. */
import { AssertionFailed } from "effect-maestro/AggregateTest"

/** Runs a test that must fail, and returns the message. */
export const failureOf = (test: () => unknown): string => {
  try {
    test()
  } catch (error) {
    if (error instanceof AssertionFailed) return error.message
    throw error
  }
  throw new Error("the assertion has succeeded")
}

/** Runs a test that must reject, and returns the message. */
export const failureFrom = async (test: () => Promise<void>): Promise<string> => {
  try {
    await test()
  } catch (error) {
    if (error instanceof AssertionFailed) return error.message
    throw error
  }
  throw new Error("the assertion has succeeded")
}
