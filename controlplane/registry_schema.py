"""The fleet's soft state in Redis: every key, what lies under it, how long it lives, who writes it and who reads it.

All keys begin with `speakerd:2:`. Ids only: never a name, never an embedding. `{node}` is a node id, `{stream}` is
`{tenant id}/{stream id}`, for two tenants may call their streams alike. Instants are seconds on Redis's own clock.

    epoch             string, for ever; written by `heartbeat`, read by all scripts. Random: another one, or none, says
                      that Redis was emptied and has to be told again.
    nodes             zset, for ever; written by `heartbeat`, `recall`, `forget`, `view`, read by `view`, `place`.
                      node -> its last heartbeat; 0: silent since before Redis was emptied.
    node:{node}       hash, NODE_KEPT_S; written by `heartbeat`, `advance`, `doubt`, `recall`, `forget`, read by `view`,
                      `place`. What the node said last: NODE_FIELDS. `doubted` alone is ours: 1 when the node was found
                      to hold something else than it should, and is warm on nothing until it is repaired.
    slots:{node}      zset, until its last member lapses; written by `place`, `release`, `heartbeat`, `recall`, read by
                      `view`, `place`. stream -> when its reservation lapses; gone once the node counts the stream.
                      What takes several slots has a member for each: stream, stream#2, ...
    tenants:{node}    hash, NODE_TTL_S; written by `heartbeat`, `forget`, read by `place`. tenant -> how many of the
                      node's slots its streams take.
    placed:{stream}   string, PLACED_S; written by `place`, `recall`, read by `place`. The stream's last node.
    faults:{node}     zset, FAULTS_S; written by `place`, read by `view`. stream that left the node as failed -> when.
    wake              channel; published to when the log has grown or nodes have got further, heard by every control
                      plane. "{process} grown|moved {revision}".
    jobs:{n}:{tenant} stream with the group `workers`, until it is empty; written by `job_enqueue`, `job_take`,
                      `job_done`. The tenant's jobs of priority n that wait, a field `job` each. An entry is delivered
                      to a worker until the job is claimed in SQL; from then on the claim's lease there says whose it
                      is.
    jobs:known        hash, for ever; written by `job_enqueue`, `job_done`, read by `job_enqueue`. job -> 1, of all
                      entries: so that SQL can be gone through again and again, and no job is queued twice.
    jobs:turns        zset, for ever; written by `job_enqueue`, `job_take`, read by `job_take`. tenant that has entries
                      -> the number of its last turn.
    jobs:served       hash, for ever; written by `job_take`, read by `job_enqueue`. tenant -> the same, kept when its
                      queue is empty: who comes back with one job at a time is no newcomer each time.
    jobs:turn         counter, for ever; written by `job_take`. The number of the last turn.
    jobs              channel; heard by every control plane. "new", "canceled {job}", "changed {job}".

A voice has no key. All nodes hold all voices, so the warm set of a voice is who has applied the log up to the voice's
revision with a model that has its voiceprint, and is not doubted: one comparison a node with what `nodes` answers
anyway, instead of ten thousand million set members for 10M voices on 1,000 nodes (docs/adr/0010).

Every change is one script, so that control planes never see half of one. What a node says is fenced by its
incarnation: a message of an older one changes nothing. There are no keys that safety rests on, and none that cannot be
told again by who wrote it: see `Registry.rebuild`. Redis Cluster is not supported: scripts name keys as they go.
"""

from __future__ import annotations

PREFIX = "speakerd:2:"
EPOCH = f"{PREFIX}epoch"
NODES = f"{PREFIX}nodes"
WAKE = f"{PREFIX}wake"
JOB_NEWS = f"{PREFIX}jobs"

NODE_TTL_S = 6.0
"""A node that was not heard for so long is no candidate; it stays known, as stale, for a day."""
NODE_KEPT_S = 86_400.0
PLACED_S = 900.0
"""How long a stream that broke off finds back to its node."""
FAULTS_S = 10.0
"""How long a stream that left a node as failed counts against it."""

SLOTS_MAX = 8
"""What one stream may take: as many slots as a call may have channels."""

NODE_FIELDS = (
    "incarnation",
    "address",
    "model",
    "zone",
    "state",
    "cursor",
    "streams",
    "streams_max",
    "files",
    "files_max",
    "lag_ms",
    "voices",
    "queued",
    "doubted",
)
_FIELDS = ", ".join(f"'{name}'" for name in NODE_FIELDS)

_NOW = "local now = redis.call('TIME'); now = now[1] + now[2] / 1e6\n"
_EPOCH = "local epoch = redis.call('GET', ARGV[1] .. 'epoch') or ''\n"

# ARGV: prefix, node, seconds kept, an epoch to begin with, then the value of each field but `doubted`, the seconds for
# which the last part counts, and that: (tenant, slots) again and again.
# A stream that has opened is counted by the node, so as many of the oldest reservations go as it has more streams.
HEARTBEAT = (
    _NOW
    + """
local node, slots = ARGV[1] .. 'node:' .. ARGV[2], ARGV[1] .. 'slots:' .. ARGV[2]
redis.call('SET', ARGV[1] .. 'epoch', ARGV[4], 'NX')
local epoch = redis.call('GET', ARGV[1] .. 'epoch')
local known = redis.call('HMGET', node, 'incarnation', 'streams', 'state', 'cursor')
local incarnation = tonumber(known[1])
if incarnation and incarnation > tonumber(ARGV[5]) then return epoch end
local cursor = tonumber(ARGV[10])
if incarnation == tonumber(ARGV[5]) then
  local grown = tonumber(ARGV[11]) - tonumber(known[2] or 0)
  if grown > 0 then redis.call('ZREMRANGEBYRANK', slots, 0, grown - 1) end
  if known[3] == 'serving' and ARGV[9] == 'serving' then cursor = math.max(cursor, tonumber(known[4] or 0)) end
end
-- Who begins anew, under a new incarnation or by reading all again, begins undoubted.
if incarnation ~= tonumber(ARGV[5]) or ARGV[9] ~= 'serving' then redis.call('HDEL', node, 'doubted') end
redis.call('HSET', node, 'incarnation', ARGV[5], 'address', ARGV[6], 'model', ARGV[7], 'zone', ARGV[8],
  'state', ARGV[9], 'cursor', cursor, 'streams', ARGV[11], 'streams_max', ARGV[12], 'files', ARGV[13],
  'files_max', ARGV[14], 'lag_ms', ARGV[15], 'voices', ARGV[16], 'queued', ARGV[17])
redis.call('PEXPIRE', node, math.ceil(tonumber(ARGV[3]) * 1000))
redis.call('ZADD', ARGV[1] .. 'nodes', now, ARGV[2])
local tenants = ARGV[1] .. 'tenants:' .. ARGV[2]
redis.call('DEL', tenants)
for at = 19, #ARGV, 2 do redis.call('HSET', tenants, ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', tenants, math.ceil(tonumber(ARGV[18]) * 1000))
return epoch
"""
)

# ARGV: prefix, then (node, incarnation, cursor) again and again: nodes said by an acknowledgement how far they are.
ADVANCE = """
for at = 2, #ARGV, 3 do
  local node = ARGV[1] .. 'node:' .. ARGV[at]
  local known = redis.call('HMGET', node, 'incarnation', 'state', 'cursor')
  if known[1] == ARGV[at + 1] and known[2] == 'serving' and tonumber(known[3] or 0) < tonumber(ARGV[at + 2]) then
    redis.call('HSET', node, 'cursor', ARGV[at + 2])
  end
end
return redis.call('GET', ARGV[1] .. 'epoch') or ''
"""

# ARGV: prefix, node, incarnation, 1 or 0.
DOUBT = """
local node = ARGV[1] .. 'node:' .. ARGV[2]
if redis.call('HGET', node, 'incarnation') == ARGV[3] then redis.call('HSET', node, 'doubted', ARGV[4]) end
return redis.call('GET', ARGV[1] .. 'epoch') or ''
"""

# ARGV: prefix, node, incarnation: it left, and said that it holds nothing.
FORGET = """
local node = ARGV[1] .. 'node:' .. ARGV[2]
local known = tonumber(redis.call('HGET', node, 'incarnation') or 0)
if known <= tonumber(ARGV[3]) then
  redis.call('DEL', node, ARGV[1] .. 'slots:' .. ARGV[2], ARGV[1] .. 'faults:' .. ARGV[2],
    ARGV[1] .. 'tenants:' .. ARGV[2])
  redis.call('ZREM', ARGV[1] .. 'nodes', ARGV[2])
end
return redis.call('GET', ARGV[1] .. 'epoch') or ''
"""

# ARGV: prefix, seconds kept. Answers the epoch, then each node: id, age of its heartbeat, fields, reserved, faults.
VIEW = (
    _NOW
    + _EPOCH
    + f"""
local found = {{epoch}}
for _, id in ipairs(redis.call('ZRANGE', ARGV[1] .. 'nodes', 0, -1)) do
  local fields = redis.call('HMGET', ARGV[1] .. 'node:' .. id, {_FIELDS})
  if fields[1] then
    table.insert(fields, 1, id)
    table.insert(fields, 2, tostring(now - tonumber(redis.call('ZSCORE', ARGV[1] .. 'nodes', id))))
    table.insert(fields, redis.call('ZCOUNT', ARGV[1] .. 'slots:' .. id, now, '+inf'))
    table.insert(fields, redis.call('ZCOUNT', ARGV[1] .. 'faults:' .. id, now - tonumber(ARGV[2]), '+inf'))
    table.insert(found, fields)
  else
    redis.call('ZREM', ARGV[1] .. 'nodes', id)
  end
end
return found
"""
)

# One call decides and reserves, on what Redis knows at this moment: control planes agree because there is one of it.
# ARGV: prefix, stream, seconds a node may be silent, seconds the slot is held, seconds the placement is kept, seconds
# a fault counts, revision to be warm on ('' when no candidate is), slots that it takes, tenant and how many slots that
# may have (-1: as many as there are), number of models, models, number of nodes to avoid, nodes to avoid, then
# candidates, best first: of the first two the less loaded one is taken, then one after the other.
# Answers (epoch, 1, node, address, incarnation), (epoch, 0) when all are full, (epoch, -1) when none is known, and
# (epoch, -2) when the tenant has as much as it may. A stream that was placed before moves, from a node that may count
# it still: it is let through until the tenant has twice as much.
PLACE = (
    _NOW
    + _EPOCH
    + """
local prefix, stream = ARGV[1], ARGV[2]
local wants, tenant, most = tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])
local at, models, avoided = 12, {}, {}
for _ = 1, tonumber(ARGV[11]) do models[ARGV[at]] = true; at = at + 1 end
local many = tonumber(ARGV[at]); at = at + 1
for _ = 1, many do avoided[ARGV[at]] = true; at = at + 1 end
local known = false

local function slot_of(number) return number == 1 and stream or stream .. '#' .. number end

local function load_of(id)
  local heard = redis.call('ZSCORE', prefix .. 'nodes', id)
  if not heard or tonumber(heard) < now - tonumber(ARGV[3]) then return nil end
  known = true
  local node = redis.call('HMGET', prefix .. 'node:' .. id, 'state', 'streams', 'streams_max')
  if node[1] ~= 'serving' then return nil end
  local slots = prefix .. 'slots:' .. id
  redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
  local taken = tonumber(node[2]) + redis.call('ZCARD', slots)
  for number = 1, wants do
    if redis.call('ZSCORE', slots, slot_of(number)) then taken = taken - 1 end
  end
  if taken + wants > tonumber(node[3]) then return nil end
  return taken / tonumber(node[3])
end

local before = redis.call('GET', prefix .. 'placed:' .. stream)
if most >= 0 then
  local has, own, begins = 0, stream .. '#', tenant .. '/'
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'nodes', now - tonumber(ARGV[3]), '+inf')) do
    has = has + tonumber(redis.call('HGET', prefix .. 'tenants:' .. id, tenant) or 0)
    for _, held in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'slots:' .. id, now, '+inf')) do
      local is_own = held == stream or held:sub(1, #own) == own
      if held:sub(1, #begins) == begins and not is_own then has = has + 1 end
    end
  end
  if has + wants > (before and 2 * most or most) then return {epoch, -2} end
end
if before and avoided[before] then
  local faults = prefix .. 'faults:' .. before
  redis.call('ZREMRANGEBYSCORE', faults, '-inf', now - tonumber(ARGV[6]))
  redis.call('ZADD', faults, now, stream)
  redis.call('PEXPIRE', faults, math.ceil(tonumber(ARGV[6]) * 1000))
end

local chosen = nil
if before and not avoided[before] and load_of(before) then
  local node = redis.call('HMGET', prefix .. 'node:' .. before, 'cursor', 'model', 'doubted')
  local warm = ARGV[7] ~= '' and tonumber(node[1]) >= tonumber(ARGV[7]) and node[3] ~= '1'
    and (tonumber(ARGV[11]) == 0 or models[node[2]])
  if warm or ARGV[7] == '' then chosen = before end
end
if not chosen and ARGV[at] then
  local first, second = load_of(ARGV[at]), ARGV[at + 1] and load_of(ARGV[at + 1])
  if first and (not second or first <= second) then chosen = ARGV[at]
  elseif second then chosen = ARGV[at + 1] end
end
if not chosen then
  for next = at + 2, #ARGV do
    if load_of(ARGV[next]) then chosen = ARGV[next]; break end
  end
end
if not chosen then return {epoch, known and 0 or -1} end

local slots = prefix .. 'slots:' .. chosen
for number = 1, wants do
  if before and before ~= chosen then redis.call('ZREM', prefix .. 'slots:' .. before, slot_of(number)) end
  redis.call('ZADD', slots, now + tonumber(ARGV[4]), slot_of(number))
end
redis.call('PEXPIRE', slots, math.ceil(tonumber(ARGV[4]) * 1000) + 1000)
redis.call('SET', prefix .. 'placed:' .. stream, chosen, 'PX', math.ceil(tonumber(ARGV[5]) * 1000))
local node = redis.call('HMGET', prefix .. 'node:' .. chosen, 'address', 'incarnation')
return {epoch, 1, chosen, node[1], node[2]}
"""
)

# ARGV: prefix, stream: it will not open.
RELEASE = f"""
local node = redis.call('GET', ARGV[1] .. 'placed:' .. ARGV[2])
if node then
  redis.call('ZREM', ARGV[1] .. 'slots:' .. node, ARGV[2])
  for number = 2, {SLOTS_MAX} do redis.call('ZREM', ARGV[1] .. 'slots:' .. node, ARGV[2] .. '#' .. number) end
end
return redis.call('GET', ARGV[1] .. 'epoch') or ''
"""

# ARGV: prefix, seconds kept, then (node, incarnation, model, cursor): who held voices and is silent, known from SQL.
RECALL_NODES = """
for at = 3, #ARGV, 4 do
  local node = ARGV[1] .. 'node:' .. ARGV[at]
  if redis.call('EXISTS', node) == 0 then
    redis.call('HSET', node, 'incarnation', ARGV[at + 1], 'address', '', 'model', ARGV[at + 2], 'zone', '',
      'state', 'gone', 'cursor', ARGV[at + 3], 'streams', 0, 'streams_max', 0)
    redis.call('PEXPIRE', node, math.ceil(tonumber(ARGV[2]) * 1000))
    redis.call('ZADD', ARGV[1] .. 'nodes', 'NX', 0, ARGV[at])
  end
end
return redis.call('GET', ARGV[1] .. 'epoch') or ''
"""

# ARGV: prefix, seconds kept, then (stream, node, seconds the slot is held still, 0 when it opened): placements that a
# control plane remembers.
RECALL_PLACED = (
    _NOW
    + """
for at = 3, #ARGV, 3 do
  local kept = redis.call('SET', ARGV[1] .. 'placed:' .. ARGV[at], ARGV[at + 1], 'NX', 'PX',
    math.ceil(tonumber(ARGV[2]) * 1000))
  local left = tonumber(ARGV[at + 2])
  if kept and left > 0 then
    local slots = ARGV[1] .. 'slots:' .. ARGV[at + 1]
    redis.call('ZADD', slots, now + left, ARGV[at])
    redis.call('PEXPIRE', slots, math.ceil(left * 1000) + 1000)
  end
end
return redis.call('GET', ARGV[1] .. 'epoch') or ''
"""
)

# ARGV: prefix, then (job, tenant, priority) again and again. How many were not known yet.
JOB_ENQUEUE = """
local added = 0
for at = 2, #ARGV, 3 do
  local job, tenant = ARGV[at], ARGV[at + 1]
  if redis.call('HSETNX', ARGV[1] .. 'jobs:known', job, 1) == 1 then
    redis.call('XADD', ARGV[1] .. 'jobs:' .. ARGV[at + 2] .. ':' .. tenant, '*', 'job', job)
    local turn = redis.call('HGET', ARGV[1] .. 'jobs:served', tenant) or 0
    redis.call('ZADD', ARGV[1] .. 'jobs:turns', 'NX', turn, tenant)
    added = added + 1
  end
end
return added
"""

# ARGV: prefix, worker, milliseconds after which a delivery that came to nothing is another's, the lowest priority
# that is taken, the lowest there is, then (tenant, jobs of it that run, -1 when it may have no more) again and again.
# The next job by turns: of the tenant with the fewest that run, and of those the one whose last turn is the longest
# ago.
JOB_TAKE = """
local running, tenants = {}, {}
for at = 6, #ARGV, 2 do running[ARGV[at]] = tonumber(ARGV[at + 1]) end
for place, tenant in ipairs(redis.call('ZRANGE', ARGV[1] .. 'jobs:turns', 0, -1)) do
  tenants[place] = {tenant, running[tenant] or 0, place}
end
table.sort(tenants, function(one, other)
  if one[2] ~= other[2] then return one[2] < other[2] end
  return one[3] < other[3]
end)
for _, row in ipairs(tenants) do
  local tenant, entries = row[1], 0
  if row[2] >= 0 then
    for priority = 0, tonumber(ARGV[4]) do
      local key = ARGV[1] .. 'jobs:' .. priority .. ':' .. tenant
      local left = redis.call('XLEN', key)
      entries = entries + left
      if left > 0 then
        redis.pcall('XGROUP', 'CREATE', key, 'workers', '0')
        local entry = redis.call('XAUTOCLAIM', key, 'workers', ARGV[2], ARGV[3], '0-0', 'COUNT', 1)[2][1]
        if not entry or not entry[2] then
          local read = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[2], 'COUNT', 1, 'STREAMS', key, '>')
          entry = read and read[1] and read[1][2][1]
        end
        if entry and entry[2] then
          local turn = redis.call('INCR', ARGV[1] .. 'jobs:turn')
          redis.call('ZADD', ARGV[1] .. 'jobs:turns', turn, tenant)
          redis.call('HSET', ARGV[1] .. 'jobs:served', tenant, turn)
          return {key, entry[1], entry[2][2]}
        end
      end
    end
    local is_whole = ARGV[4] == ARGV[5]
    if entries == 0 and is_whole then redis.call('ZREM', ARGV[1] .. 'jobs:turns', tenant) end
  end
end
return false
"""

# ARGV: prefix, stream, entry, job: the entry is no longer needed.
JOB_DONE = """
redis.pcall('XACK', ARGV[2], 'workers', ARGV[3])
redis.call('XDEL', ARGV[2], ARGV[3])
redis.call('HDEL', ARGV[1] .. 'jobs:known', ARGV[4])
if redis.call('XLEN', ARGV[2]) == 0 then redis.call('DEL', ARGV[2]) end
return 1
"""
