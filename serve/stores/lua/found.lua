-- Begin a script that writes: return what is stored unless the caller's token (the first argument) is.
local p, meta = KEYS[1], KEYS[1] .. 'meta'
local found = redis.call('HMGET', meta, 'token', 'epoch', 'seq')
if not found[1] then return false end
if found[1] ~= ARGV[1] then return found end
