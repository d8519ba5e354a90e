-- Take the next fencing epoch. Arguments: token. Returns the epoch.
local meta = KEYS[1] .. 'meta'
if redis.call('HEXISTS', meta, 'id') == 0 then return false end
redis.call('HSET', meta, 'token', ARGV[1])
return redis.call('HINCRBY', meta, 'epoch', 1)
