-- Read viewers and changed candidates. Arguments: number, id of the known store or '', ids of
-- viewers. Returns id, number, rows of viewers, ids of candidates, rows of candidates, heartbeat.
-- `unpack` is limited to some 8,000 values, hence the blocks of 4,000.
local p = KEYS[1]
local fields = redis.call('HMGET', p .. 'meta', 'id', 'generation', 'seq', 'floor')
local id, generation, seq, floor = unpack(fields)
if not id then return false end
local at, beat = p .. generation .. ':', redis.call('GET', p .. 'beat')
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
  return {id, '0', viewers, {}, {}, beat}
end
if since == tonumber(seq) then return {id, seq, viewers, {}, {}, beat} end
local names = redis.call('ZRANGEBYSCORE', at .. 'order', '(' .. ARGV[1], '+inf')
return {id, seq, viewers, names, get({}, 'HMGET', at .. 'rows', names), beat}
