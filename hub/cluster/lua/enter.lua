-- A session is in a room. Answers 'ok'; 'fenced' (the node's lease has lapsed); 'gone' (registered again after its grace ended).
-- KEYS  1 roster of the room
-- ARGV  1 presence prefix  2 call  3 session  4 participant  5 incarnation  6 entry (JSON)  7 'live' | 'interrupted'
--       8 '1' when a node brings back what it had registered before
-- All keys made from the prefix are in the slot of KEYS[1].
local prefix, call, session, participant, incarnation = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local member = call .. '|' .. session
if redis.call('EXISTS', prefix .. 'lease:' .. incarnation) == 0 then
  return 'fenced'
end
if ARGV[8] == '1' and redis.call('ZSCORE', prefix .. 'gone', member) then
  return 'gone'
end
local people = prefix .. 'people:' .. call
local listed = redis.call('HGET', people, participant)
local kept = {session}
if listed then
  for _, other in ipairs(cjson.decode(listed)) do
    local stored = other ~= session and redis.call('HGET', KEYS[1], other)
    if stored then
      local entry = cjson.decode(stored)
      local there = entry.state == 'live' and redis.call('EXISTS', prefix .. 'lease:' .. entry.incarnation) == 1
      if there or ARGV[7] ~= 'live' then
        kept[#kept + 1] = other
      else
        -- The participant is back: nobody waits for the session that was lost.
        redis.call('HDEL', KEYS[1], other)
        redis.call('ZREM', prefix .. 'interrupted', call .. '|' .. other)
        redis.call('SREM', prefix .. 'held:' .. entry.incarnation, 'r|' .. call .. '|' .. other)
      end
    end
  end
end
redis.call('HSET', people, participant, cjson.encode(kept))
redis.call('HSET', KEYS[1], session, ARGV[6])
redis.call('SADD', prefix .. 'held:' .. incarnation, 'r|' .. member)
redis.call('ZREM', prefix .. 'gone', member)
if ARGV[7] == 'live' then
  redis.call('ZREM', prefix .. 'interrupted', member)
  redis.call('ZREM', prefix .. 'claimed', call .. '|' .. participant)
  redis.call('HDEL', prefix .. 'claims', call .. '|' .. participant)
else
  local time = redis.call('TIME')
  redis.call('ZADD', prefix .. 'interrupted', time[1] * 1000 + math.floor(time[2] / 1000), member)
end
return 'ok'
