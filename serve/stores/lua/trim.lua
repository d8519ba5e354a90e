-- Trim the journal. Arguments: token, number of the first entry to keep.
redis.call('XTRIM', p .. 'journal', 'MINID', ARGV[2] .. '-0')
return found
