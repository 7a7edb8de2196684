/**
 * Objects and properties of a table that is rebuilt: the statements that make each kind, and whether a rebuild keeps or
 * refuses it.
 */
import { uniqueName } from "./database.js"

/** Roles and a tablespace that the tests create on the server. */
export const [reader, writer] = [uniqueName("reader"), uniqueName("writer")]
export const space = uniqueName("space")

/** The statement that creates the usual table. `T` stands for its name. */
export const usual =
  "create table T (id serial primary key, account text not null constraint T_account unique, amount int not null default 0)"

export interface Case {
  /** Creates the table. By default it is the usual one. */
  readonly table?: string
  /** The statements that follow. `T` stands for the name of the table. */
  readonly statements?: ReadonlyArray<string>
  /** Undoes what is not dropped with the table. */
  readonly after?: ReadonlyArray<string>
}

/** The properties that a rebuild keeps, because they belong to the table. */
export const carried: Record<string, Case> = {
  nothing: {},
  owner: { statements: [`alter table T owner to ${writer}`] },
  "rights of a role": {
    statements: [`grant select, insert on T to ${reader} with grant option`, `grant truncate on T to public`]
  },
  "rights that the owner has revoked from itself": { statements: ["revoke delete, truncate on T from current_user"] },
  "rights that default privileges give, and that are revoked": {
    table: `alter default privileges grant all on tables to ${reader}; ${usual}`,
    statements: [`revoke all on T from ${reader}`, `grant insert on T to ${writer}`],
    after: [`alter default privileges revoke all on tables from ${reader}`]
  },
  "rights of another owner": {
    statements: [
      `alter table T owner to ${writer}`,
      `grant select on T to ${reader}`,
      `revoke update on T from ${writer}`
    ]
  },
  "rights on columns": { statements: [`grant select (account), update (amount) on T to ${reader} with grant option`] },
  "row level security": { statements: ["alter table T enable row level security"] },
  "row level security that its owner has to keep": {
    statements: ["alter table T enable row level security, force row level security"]
  },
  "policies, and comments on them": {
    statements: [
      `create policy "own rows" on T using (account = current_user)`,
      `create policy p2 on T as restrictive for insert to ${reader}, ${writer} with check (amount > 0 and exists (select 1 from other where x = amount))`,
      `create policy p3 on T for update using (true) with check (false)`,
      `comment on policy "own rows" on T is 'it''s "theirs"'`
    ]
  },
  "storage parameters": {
    statements: ["alter table T set (fillfactor = 70, autovacuum_enabled = false, toast.autovacuum_enabled = false)"]
  },
  "storage parameters of indexes": {
    statements: ["create index on T (amount) with (fillfactor = 50)", "alter index T_pkey set (fillfactor = 60)"]
  },
  "replica identity full": { statements: ["alter table T replica identity full"] },
  "replica identity nothing": { statements: ["alter table T replica identity nothing"] },
  "replica identity by an index": { statements: ["alter table T replica identity using index T_account"] },
  "an unlogged table": { statements: ["alter table T set unlogged"] },
  "an unlogged table with an identity": {
    table: "create unlogged table T (id int generated always as identity, account text unique, amount int)"
  },
  "the index that it is clustered by": { statements: ["alter table T cluster on T_account"] },
  "an access method": {
    table: `create access method heap_too type table handler heap_tableam_handler; create table T (account text unique, amount int) using heap_too`,
    after: ["drop access method heap_too"]
  },
  tablespaces: {
    statements: [`alter table T set tablespace ${space}`, `create index on T (amount) tablespace ${space}`]
  },
  comments: {
    statements: [
      "create statistics T_s on account, amount from T",
      "create index T_i on T (amount)",
      "alter table T add constraint T_c check (amount > -5)",
      ...[
        "table T",
        "type T",
        "column T.account",
        "constraint T_c on T",
        "constraint T_account on T",
        "index T_i",
        "statistics T_s",
        "sequence T_id_seq"
      ].map((what) => `comment on ${what} is 'a comment on ${what}, with T and ''quotes'''`)
    ]
  },
  "what columns have": {
    statements: [
      "alter table T alter account set storage external, alter account set statistics 500, alter amount set (n_distinct = -0.5)",
      "alter table T add note text compression pglz collate \"C\" default upper('x'), add twice int generated always as (amount * 2) stored"
    ]
  },
  lists: { statements: ["alter table T add numbers int[], add texts text[][]"] },
  "dropped columns": { statements: ["alter table T add gone int, add note text", "alter table T drop gone"] },
  constraints: {
    statements: [
      "alter table T add constraint positive check (amount >= 0)",
      "alter table T add constraint later check (amount <> 17) not valid",
      "alter table T add constraint pair unique nulls not distinct (account, amount) include (id) deferrable initially deferred",
      "alter table T add constraint none exclude using btree (account with =) where (amount > 1000)",
      "alter table T rename constraint T_amount_not_null to amount_is_there"
    ]
  },
  "a table and indexes that were renamed": {
    table:
      "create table was (id serial primary key, account text not null unique, amount int not null default 0); alter table was rename to T",
    statements: [
      "alter table T rename account to name; alter table T rename name to account",
      "create index a1 on T (amount)",
      "create index a2 on T (lower(account)) where amount > 0",
      "alter index a1 rename to a3; alter index a2 rename to a1; alter index a3 rename to a2"
    ],
    after: ["drop table if exists was"]
  },
  "two equal indexes": {
    statements: ["create index T_z on T (amount)", "create index T_a on T (amount)", "comment on index T_z is 'z'"]
  },
  "statistics of an index": {
    statements: ["create index T_i on T ((amount + 1))", "alter index T_i alter column 1 set statistics 77"]
  },
  "extended statistics": {
    statements: [
      "create statistics T_s (ndistinct, mcv) on account, amount from T",
      "alter statistics T_s set statistics 33",
      "create statistics T_e on (amount % 10), account from T",
      `alter statistics T_e owner to ${writer}`
    ]
  },
  "a sequence that a column owns": {
    statements: [
      "alter sequence T_id_seq increment 5",
      `grant usage on sequence T_id_seq to ${reader}`,
      "create sequence T_extra owned by T.amount",
      "select setval('T_extra', 42)",
      "create table T_user (id int default nextval('T_id_seq'))"
    ],
    after: ["drop table T_user"]
  },
  "an identity, and where it is": {
    table:
      "create table T (id int generated by default as identity (start 10 increment -2 minvalue -1000 maxvalue 1000), account text unique, amount int)",
    statements: [
      "select setval('T_id_seq', -600)",
      'alter sequence T_id_seq rename to "T ids"',
      `grant select on sequence "T ids" to ${reader}`,
      `comment on sequence "T ids" is 'ids'`
    ]
  },
  "an identity that default privileges concern": {
    table: `alter default privileges grant all on sequences to ${reader}; create table T (id int generated always as identity, account text unique, amount int)`,
    statements: [`revoke all on sequence T_id_seq from ${reader}`],
    after: [`alter default privileges revoke all on sequences from ${reader}`]
  },
  "a domain and an enumeration": {
    table:
      "create domain T_d as int check (value >= 0); create type T_e as enum ('a', 'b'); create table T (account text unique, amount T_d, e T_e default 'a')",
    after: ["drop domain T_d", "drop type T_e"]
  }
}

/** The objects and properties that refuse a rebuild, and their names in the failure. */
export const refused: Record<string, Case & { readonly names: string }> = {
  "a view": { statements: ["create view T_v as select account from T"], names: "view public.T_v" },
  "a view of whole rows": { statements: ["create view T_v as select t from T t"], names: "view public.T_v" },
  "a view that groups by the key": {
    statements: ["create view T_v as select id, account from T group by id"],
    names: "view public.T_v"
  },
  "a materialized view": {
    statements: ["create materialized view T_v as select account from T"],
    names: "materialized view public.T_v"
  },
  "a rule": {
    statements: ["create rule T_r as on delete to T do also select 1"],
    names: "rule T_r on table public.T"
  },
  "a trigger": {
    statements: [
      "create trigger T_t before insert on T for each row execute function suppress_redundant_updates_trigger()"
    ],
    names: "trigger T_t on table public.T"
  },
  "a constraint trigger": {
    statements: [
      "create constraint trigger T_t after insert on T deferrable for each row execute function suppress_redundant_updates_trigger()"
    ],
    names: "constraint T_t on table public.T"
  },
  "a foreign key to another table": {
    statements: [
      "create table T_o (id int primary key)",
      "alter table T add constraint T_f foreign key (amount) references T_o"
    ],
    names: "constraint T_f on table public.T"
  },
  "a foreign key from another table": {
    statements: ["create table T_o (account text constraint T_f references T (account))"],
    names: "constraint T_f on table public.T_o"
  },
  "a foreign key to itself": {
    statements: ["alter table T add constraint T_f foreign key (amount) references T (id)"],
    names: "constraint T_f on table public.T"
  },
  "a function that takes a row": {
    statements: ["create function T_f(T) returns int language sql as 'select 1'"],
    names: "function public.T_f(public.T)"
  },
  "a function that returns rows": {
    statements: ["create function T_f() returns setof T language sql as 'select * from T'"],
    names: "function public.T_f()"
  },
  "a function with a parsed body": {
    statements: ["create function T_f() returns bigint begin atomic select count(*) from T; end"],
    names: "function public.T_f()"
  },
  "a table with a column of rows": {
    statements: ["create table T_o (x T)"],
    names: "column x of table public.T_o"
  },
  "a table with a column of arrays of rows": {
    statements: ["create table T_o (x T[])"],
    names: "column x of table public.T_o"
  },
  "a composite type": { statements: ["create type T_y as (x T)"], names: "column x of composite type public.T_y" },
  "a domain over its rows": { statements: ["create domain T_d as T"], names: "type public.T_d" },
  "a range of its rows": { statements: ["create type T_r as range (subtype = T)"], names: "type public.T_r" },
  "a cast of its rows": {
    statements: ["create cast (T as int) with inout"],
    names: "cast from public.T to integer"
  },
  "an aggregate of its rows": {
    statements: [
      "create function T_f(T, T) returns T language sql as 'select $1'",
      "create aggregate T_a (T) (sfunc = T_f, stype = T)"
    ],
    names: "function public.T_a(public.T)"
  },
  "an operator for its rows": {
    statements: [
      "create function T_f(T, T) returns boolean language sql as 'select true'",
      "create operator === (leftarg = T, rightarg = T, function = T_f)"
    ],
    names: "operator public.===(public.T,public.T)"
  },
  "rights on its row type": {
    statements: [`grant usage on type T to ${reader}`],
    names: "rights of row type"
  },
  "a security label": {
    statements: ["insert into pg_seclabel values ('T'::regclass, 'pg_class'::regclass, 2, 'test', 'secret')"],
    after: ["delete from pg_seclabel"],
    names: 'labels of column account is ["test secret"] and would be null'
  },
  "a subscription of the server": {
    statements: [
      "create subscription T_s connection 'dbname=nowhere' publication nothing with (connect = false, slot_name = none)",
      "insert into pg_subscription_rel select oid, 'T'::regclass, 'r' from pg_subscription where subname = 'T_s'"
    ],
    after: ["drop subscription T_s"],
    names: "subscription T_s"
  },
  "a default that uses its identity": {
    table: "create table T (id int generated always as identity, account text unique, amount int)",
    statements: ["create table T_o (id int default nextval('T_id_seq'))"],
    names: "default value for column id of table public.T_o"
  },
  "a policy of another table": {
    statements: ["create table T_o (x int)", "create policy T_p on T_o using (exists (select 1 from T))"],
    names: "policy T_p on table public.T_o"
  },
  "a publication": {
    statements: ["create publication T_p for table T"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a publication of some rows and columns": {
    statements: ["create publication T_p for table T (account) where (account <> 'a')"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a publication of its schema": {
    statements: ["create publication T_p for tables in schema public"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a publication of all tables": {
    statements: ["create publication T_p for all tables"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a table that inherits": { statements: ["create table T_o () inherits (T)"], names: "table public.T_o" },
  "a table that it inherits": {
    table: "create table T_o (account text, amount int); create table T (unique (account)) inherits (T_o)",
    names: "table public.T_o"
  },
  "a partitioned table": {
    table:
      "create table T_o (account text, amount int) partition by list (account); create table T partition of T_o default",
    names: "table public.T_o"
  },
  "partitions of its own": {
    table: "create table T (account text unique, amount int) partition by list (account)",
    names: 'there is no table "T" that is an ordinary one'
  },
  "a table of a type": {
    table: "create type T_y as (account text, amount int); create table T of T_y (unique (account))",
    names: "reloftype of table"
  },
  "an extension": {
    statements: ["alter extension plpgsql add table T"],
    after: ["alter extension plpgsql drop table T"],
    names: "extension plpgsql"
  },
  "an index that depends on an extension": {
    statements: ["create index T_i on T (amount)", "alter index T_i depends on extension plpgsql"],
    names: "dependency x of index public.T_i on extension plpgsql would be lost"
  },
  "an event trigger": {
    statements: [
      "create function T_f() returns event_trigger language plpgsql as 'begin end'",
      "create event trigger T_e on sql_drop when tag in ('DROP TABLE') execute function T_f()"
    ],
    after: ["drop event trigger T_e"],
    names: "event trigger T_e"
  },
  "rights that a role has passed on": {
    statements: [
      `grant select on T to ${reader} with grant option`,
      `set role ${reader}; grant select on T to ${writer}; reset role`
    ],
    names: "rights of table"
  },
  "an index that is not valid": {
    statements: [
      "create index T_i on T (amount)",
      "update pg_index set indisvalid = false where indexrelid = 'T_i'::regclass"
    ],
    names: "indisvalid of index T_i is false and would be true"
  },
  "statistics in another schema": {
    statements: ["create schema T_n", "create statistics T_n.T_s on account, amount from T"],
    names: "statistics T_s"
  }
}
