-- Commit changed rows. Arguments: token, number, journal entry, most removals to remember, number of
-- the viewers' arguments, then ids and rows. Returns token, epoch and number.
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
