-- Create a store. Arguments: id, format.
local p, meta = KEYS[1], KEYS[1] .. 'meta'
if redis.call('HSETNX', meta, 'id', ARGV[1]) == 0 then return end
redis.call('HSET', meta, 'origin', ARGV[1], 'format', ARGV[2], 'token', '', 'epoch', 0, 'seq', 0, 'floor', 0)
redis.call('HSET', meta, 'generation', 1, 'generations', 1)
