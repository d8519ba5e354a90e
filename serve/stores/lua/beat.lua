-- Leave a heartbeat: the server's time in ms.
local time = redis.call('TIME')
redis.call('SET', p .. 'beat', string.format('%d%03d', time[1], math.floor(time[2] / 1000)))
