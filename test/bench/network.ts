/** A network between client and server: a proxy on the loopback interface that passes everything on after a delay. */
import { fork } from "node:child_process"
import { fileURLToPath } from "node:url"
import type { Order, Ready } from "./networkProxy.js"

export interface Network {
  /** The given URL with the address of the proxy. */
  readonly url: string
  readonly close: () => void
}

/** Starts the proxy in a process of its own, so that it is delayed neither by the client's work nor by its garbage collector. */
export const openNetwork = async (target: string, millisEachWay: number): Promise<Network> => {
  const url = new URL(target)
  const child = fork(fileURLToPath(new URL("networkProxy.ts", import.meta.url)))
  const ready = new Promise<Ready>((resolve, reject) => {
    child.once("message", (message) => resolve(message as Ready))
    child.once("exit", () => reject(new Error("the proxy has ended")))
  })
  const order: Order = { host: url.hostname, port: Number(url.port), millis: millisEachWay }
  child.send(order)
  url.port = String((await ready).port)
  return { url: url.href, close: () => void child.kill() }
}
