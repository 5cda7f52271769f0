-- Sessions of one node come and go, many in one call. Answers 1, or 0 when the lease has lapsed.
-- KEYS  1 lease of the incarnation
-- ARGV  1 presence prefix  2 incarnation  then for each: tenant, session, info (JSON; '' when it closed)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local prefix = ARGV[1]
for i = 3, #ARGV, 3 do
  local all, member = prefix .. 'sessions:' .. ARGV[i], 's|' .. ARGV[i] .. '|' .. ARGV[i + 1]
  if ARGV[i + 2] == '' then
    redis.call('HDEL', all, ARGV[i + 1])
    redis.call('SREM', prefix .. 'held:' .. ARGV[2], member)
  else
    redis.call('HSET', all, ARGV[i + 1], ARGV[i + 2])
    redis.call('SADD', prefix .. 'held:' .. ARGV[2], member)
  end
end
return 1
