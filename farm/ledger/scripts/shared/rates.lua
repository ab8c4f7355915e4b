-- Rates are kept in buckets of 5 s (for ten minutes) and of 60 s (for two hours).

local function count(at, amounts)
  for _, bucket in ipairs({ { 5, 600 }, { 60, 7200 } }) do
    local key = P .. 'rate:' .. bucket[1] .. ':' .. math.floor(at / bucket[1])
    local is_new = false
    for field, amount in pairs(amounts) do
      is_new = redis.call('HINCRBY', key, field, amount) == amount or is_new
    end
    -- Only who writes a field first need say how long the bucket lives.
    if is_new then redis.call('EXPIRE', key, bucket[2]) end
  end
end
