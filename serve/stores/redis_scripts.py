"""Lua scripts of the Redis store; the server runs each one atomically.

`KEYS[1]` is the prefix of every key; `serve.stores.redis.RedisStore` documents the layout. A script
returns nil if the store does not exist. Scripts that write return token (the hash field `lease`),
epoch and number as they found them. They write only if the caller's token is stored and, for a
commit, its number is greater; the caller sees from the answer whether they wrote.
"""

from __future__ import annotations

import hashlib
from functools import cache


@cache
def digest(script: str) -> str:
    """Return the SHA-1 of a script, by which a server runs a cached one."""
    return hashlib.sha1(script.encode()).hexdigest()


_FOUND = """
local p, meta = KEYS[1], KEYS[1] .. 'meta'
local found = redis.call('HMGET', meta, 'lease', 'epoch', 'seq')
if not found[1] then return false end
if found[1] ~= ARGV[1] then return found end
"""

_SHOW = """
local now = redis.call('HMGET', meta, 'generation', 'seq', 'id')
redis.call('SET', p .. 'now', table.concat(now, ' '))
"""

# Create a store. Arguments: id, format.
CREATE = (
    """
local p, meta = KEYS[1], KEYS[1] .. 'meta'
if redis.call('HSETNX', meta, 'id', ARGV[1]) == 0 then return end
redis.call('HSET', meta, 'format', ARGV[2], 'lease', '', 'epoch', 0, 'seq', 0, 'floor', 0)
redis.call('HSET', meta, 'generation', 1, 'generations', 1)
"""
    + _SHOW
)

# Take the next fencing epoch. Arguments: token. Returns the epoch.
TAKE_EPOCH = """
local meta = KEYS[1] .. 'meta'
if redis.call('HEXISTS', meta, 'id') == 0 then return false end
redis.call('HSET', meta, 'lease', ARGV[1])
return redis.call('HINCRBY', meta, 'epoch', 1)
"""

# Read viewers and changed candidates. Arguments: number, id of the known store or '', ids of
# viewers. Returns id, number, rows of viewers, ids of candidates, rows of candidates.
# Lua's `unpack` is limited to some 8,000 values, hence the blocks of 4,000.
READ = """
local p = KEYS[1]
local fields = redis.call('HMGET', p .. 'meta', 'id', 'generation', 'seq', 'floor')
local id, generation, seq, floor = unpack(fields)
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
local is_other = ARGV[2] ~= '' and ARGV[2] ~= id
if since > 0 and (is_other or since < tonumber(floor) or since > tonumber(seq)) then
  return {id, '0', viewers, {}, {}}
end
if since == tonumber(seq) then return {id, seq, viewers, {}, {}} end
local names = redis.call('ZRANGEBYSCORE', at .. 'order', '(' .. ARGV[1], '+inf')
return {id, seq, viewers, names, get({}, 'HMGET', at .. 'rows', names)}
"""

# Commit changed rows. Arguments: token, number, journal entry, most removals to remember, number of
# the viewers' arguments, then ids and rows. Returns token, epoch and number.
COMMIT = (
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
  local limit = {'WITHSCORES', 'LIMIT', 0, excess}
  local old = redis.call('ZRANGEBYSCORE', removed, '-inf', '(' .. seq, unpack(limit))
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

# Prepare a replacement. Arguments: token. Returns token, epoch, number and a new generation.
STAGE = (
    _FOUND
    + """
found[4] = redis.call('HINCRBY', meta, 'generations', 1)
return found
"""
)

# Switch to a new generation: readers then have to read everything again. Arguments: token, number,
# generation, note.
REPLACE = (
    _FOUND
    + """
if tonumber(ARGV[2]) <= tonumber(found[3]) then return found end
local at = p .. redis.call('HGET', meta, 'generation') .. ':'
redis.call('UNLINK', at .. 'rows', at .. 'order', at .. 'removed')
redis.call('HSET', meta, 'seq', ARGV[2], 'generation', ARGV[3], 'floor', ARGV[2], 'note', ARGV[4])
"""
    + _SHOW
    + "return found"
)

# Trim the journal. Arguments: token, number of the first entry to keep.
TRIM = (
    _FOUND
    + """
redis.call('XTRIM', p .. 'journal', 'MINID', ARGV[2] .. '-0')
return found
"""
)
