-- Prepare a replacement. Arguments: token. Returns token, epoch, number and a new generation.
found[4] = redis.call('HINCRBY', meta, 'generations', 1)
return found
