-- Show generation, number and id again as one value, for an MGET of viewers.
local now = redis.call('HMGET', meta, 'generation', 'seq', 'id')
redis.call('SET', p .. 'now', table.concat(now, ' '))
