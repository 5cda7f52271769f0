-- Who is in a room: entry, then 1 if the node that holds it lives, else 0; and so on.
-- KEYS  1 roster of the room     ARGV  1 presence prefix
local found, lives = {}, {}
for _, stored in ipairs(redis.call('HVALS', KEYS[1])) do
  local incarnation = cjson.decode(stored).incarnation
  if lives[incarnation] == nil then
    lives[incarnation] = redis.call('EXISTS', ARGV[1] .. 'lease:' .. incarnation)
  end
  found[#found + 1] = stored
  found[#found + 1] = lives[incarnation]
end
return found
