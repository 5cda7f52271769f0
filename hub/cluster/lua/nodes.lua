-- The info of every node whose lease holds, and of those that were lost: {living, lost}.
-- KEYS  1 nodes  2 lately     ARGV  1 prefix of the leases  2 how long a lost node is shown (ms)
local living, lost, known = {}, {}, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if redis.call('EXISTS', ARGV[1] .. all[i]) == 1 then
    living[#living + 1] = all[i + 1]
    known[cjson.decode(all[i + 1]).node_id] = true
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lately = redis.call('HGETALL', KEYS[2])
for i = 1, #lately, 2 do
  local at, info = lately[i + 1]:match('^(%d+) (.*)$')
  if now - at > tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[2], lately[i])
  elseif not known[lately[i]] then
    lost[#lost + 1] = info
  end
end
return {living, lost}
