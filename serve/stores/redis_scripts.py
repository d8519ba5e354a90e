"""What the Redis store runs inside the server: each script is one step, with no other command between.

`KEYS[1]` is what every key begins with; the layout is `serve.stores.redis.RedisStore`'s. A script answers nil where
there is no store. Those that write answer lease, epoch and number as they found them, and write only where the
caller holds that lease and, for a commit, its number comes after: whoever reads the answer sees which.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Script:
    """A Lua script and the name by which a server that has run it knows it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode()).hexdigest())


_FOUND = """
local p, meta = KEYS[1], KEYS[1] .. 'meta'
local found = redis.call('HMGET', meta, 'lease', 'epoch', 'seq')
if not found[1] then return false end
if found[1] ~= ARGV[1] then return found end
"""

_SHOW = """
redis.call('SET', p .. 'now', table.concat(redis.call('HMGET', meta, 'generation', 'seq', 'id'), ' '))
"""

# id, format
BEGIN = Script(
    """
local p, meta = KEYS[1], KEYS[1] .. 'meta'
if redis.call('HSETNX', meta, 'id', ARGV[1]) == 0 then return end
redis.call('HSET', meta, 'format', ARGV[2], 'lease', '', 'epoch', 0, 'seq', 0, 'floor', 0)
redis.call('HSET', meta, 'generation', 1, 'generations', 1)
"""
    + _SHOW
)

# token → epoch
TAKE = Script("""
local meta = KEYS[1] .. 'meta'
if redis.call('HEXISTS', meta, 'id') == 0 then return false end
redis.call('HSET', meta, 'lease', ARGV[1])
return redis.call('HINCRBY', meta, 'epoch', 1)
""")

# number, id of the store known or '', ids of viewers … → id, number, viewers' rows, ids and rows of candidates.
# Lua passes on no more than some 8,000 values at once.
READ = Script("""
local p = KEYS[1]
local id, generation, seq, floor = unpack(redis.call('HMGET', p .. 'meta', 'id', 'generation', 'seq', 'floor'))
if not id then return false end
local at = p .. generation .. ':'
local function get(rows, command, key, names)
  for first = 1, #names, 4000 do
    local some = {unpack(names, first, math.min(first + 3999, #names))}
    local got = key and redis.call(command, key, unpack(some)) or redis.call(command, unpack(some))
    for i = 1, #some do rows[#rows + 1] = got[i] end
  end
  return rows
end
local keys = {}
for i = 3, #ARGV do keys[i - 2] = at .. 'v:' .. ARGV[i] end
local viewers = get({}, 'MGET', nil, keys)
local since = tonumber(ARGV[1])
if since > 0 and (ARGV[2] ~= '' and ARGV[2] ~= id or since < tonumber(floor) or since > tonumber(seq)) then
  return {id, '0', viewers, {}, {}}
end
if since == tonumber(seq) then return {id, seq, viewers, {}, {}} end
local names = redis.call('ZRANGEBYSCORE', at .. 'order', '(' .. ARGV[1], '+inf')
return {id, seq, viewers, names, get({}, 'HMGET', at .. 'rows', names)}
""")

# token, number, journal entry, removals remembered, how many arguments are viewers', then ids and rows
COMMIT = Script(
    _FOUND
    + """
local seq = ARGV[2]
if tonumber(seq) <= tonumber(found[3]) then return found end
local at = p .. redis.call('HGET', meta, 'generation') .. ':'
local rows, order, removed = at .. 'rows', at .. 'order', at .. 'removed'
local candidates = 6 + tonumber(ARGV[5])
for i = 6, candidates - 1, 2 do
  local key, row = at .. 'v:' .. ARGV[i], ARGV[i + 1]
  if row ~= '' then redis.call('SET', key, row) else redis.call('UNLINK', key) end
end
for i = candidates, #ARGV, 2 do
  local id, row = ARGV[i], ARGV[i + 1]
  if row ~= '' then
    redis.call('HSET', rows, id, row)
    redis.call('ZADD', order, seq, id)
    redis.call('ZREM', removed, id)
  elseif redis.call('HDEL', rows, id) == 1 then
    redis.call('ZADD', order, seq, id)
    redis.call('ZADD', removed, seq, id)
  end
end
local num_removed, most = redis.call('ZCARD', removed), tonumber(ARGV[4])
if num_removed > most then
  local excess = num_removed - math.floor(most / 2)
  local old = redis.call('ZRANGEBYSCORE', removed, '-inf', '(' .. seq, 'WITHSCORES', 'LIMIT', 0, excess)
  for i = 1, #old, 2 do
    redis.call('ZREM', removed, old[i])
    redis.call('ZREM', order, old[i])
  end
  if #old > 0 then redis.call('HSET', meta, 'floor', old[#old]) end
end
if ARGV[3] ~= '' then redis.call('XADD', p .. 'journal', seq .. '-0', 'e', ARGV[3]) end
redis.call('HSET', meta, 'seq', seq)
"""
    + _SHOW
    + "return found"
)

# token → lease, epoch, number, a new generation, floor, ids of live candidates, of removed ones with their numbers
STAGE = Script(
    _FOUND
    + """
local at = p .. redis.call('HGET', meta, 'generation') .. ':'
found[4] = redis.call('HINCRBY', meta, 'generations', 1)
found[5] = redis.call('HGET', meta, 'floor')
found[6] = redis.call('HKEYS', at .. 'rows')
found[7] = redis.call('ZRANGE', at .. 'removed', 0, -1, 'WITHSCORES')
return found
"""
)

# token, number, journal entry, generation, floor
REPLACE = Script(
    _FOUND
    + """
if tonumber(ARGV[2]) <= tonumber(found[3]) then return found end
local at = p .. redis.call('HGET', meta, 'generation') .. ':'
redis.call('UNLINK', at .. 'rows', at .. 'order', at .. 'removed')
if ARGV[3] ~= '' then redis.call('XADD', p .. 'journal', ARGV[2] .. '-0', 'e', ARGV[3]) end
redis.call('HSET', meta, 'seq', ARGV[2], 'generation', ARGV[4], 'floor', ARGV[5])
"""
    + _SHOW
    + "return found"
)

# token, number of the first entry to keep
TRIM = Script(
    _FOUND
    + """
redis.call('XTRIM', p .. 'journal', 'MINID', ARGV[2] .. '-0')
return found
"""
)
