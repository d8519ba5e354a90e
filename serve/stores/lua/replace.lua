-- Switch to a new generation: readers then have to read everything again. Arguments: token, number,
-- generation, note, new id.
local at = p .. redis.call('HGET', meta, 'generation') .. ':'
redis.call('UNLINK', at .. 'rows', at .. 'order', at .. 'removed')
redis.call('HSET', meta, 'seq', ARGV[2], 'generation', ARGV[3], 'floor', ARGV[2], 'note', ARGV[4])
redis.call('HSET', meta, 'id', ARGV[5])
-- A stream takes no number below its last one, even once it is empty; the numbers of a new log are.
if redis.call('XLEN', p .. 'journal') == 0 then redis.call('UNLINK', p .. 'journal') end
