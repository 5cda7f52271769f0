-- A session left a room. Answers how many sessions its participant still has there; -1 if it was not in it, or is another
-- node's that lives: a node that was away must not remove what moved elsewhere.
-- KEYS  1 roster of the room     ARGV  1 presence prefix  2 call  3 session  4 incarnation
local prefix, call, session = ARGV[1], ARGV[2], ARGV[3]
local stored = redis.call('HGET', KEYS[1], session)
if not stored then
  return -1
end
local entry = cjson.decode(stored)
if entry.incarnation ~= ARGV[4] and redis.call('EXISTS', prefix .. 'lease:' .. entry.incarnation) == 1 then
  return -1
end
redis.call('HDEL', KEYS[1], session)
redis.call('ZREM', prefix .. 'interrupted', call .. '|' .. session)
redis.call('SREM', prefix .. 'held:' .. entry.incarnation, 'r|' .. call .. '|' .. session)
local people = prefix .. 'people:' .. call
local kept = {}
for _, other in ipairs(cjson.decode(redis.call('HGET', people, entry.participant_id) or '[]')) do
  if other ~= session then
    kept[#kept + 1] = other
  end
end
if #kept == 0 then
  redis.call('HDEL', people, entry.participant_id)
else
  redis.call('HSET', people, entry.participant_id, cjson.encode(kept))
end
return #kept
