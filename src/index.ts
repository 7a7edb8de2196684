/**
 * @since 0.1.0
 */
export * as Aggregate from "./Aggregate.js"
export * as Event from "./Event.js"
export * as EventFeed from "./EventFeed.js"
export * as MemoryStore from "./MemoryStore.js"
export * as Projection from "./Projection.js"
export * as ProjectionTables from "./ProjectionTables.js"
export * as Rebuild from "./Rebuild.js"
export * as Snapshot from "./Snapshot.js"
export * as SqlStore from "./SqlStore.js"
export * as StoreAdapter from "./StoreAdapter.js"
export * as StoreError from "./StoreError.js"
export * as Subscription from "./Subscription.js"
export * as SubscriptionStore from "./SubscriptionStore.js"
export * as Timestamp from "./Timestamp.js"
export * as Upcast from "./Upcast.js"
