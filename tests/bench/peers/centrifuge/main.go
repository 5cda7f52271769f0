// The Go peer: the library under Centrifugo with its defaults. Rooms are channels, the echo is an RPC.
// Environment: PORT, BENCH_SECRET, REDIS_ADDRESS and REDIS_PASSWORD (two nodes), HISTORY=1 (recorded events)
package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/golang-jwt/jwt/v5"
)

// The hub's: 1,000 events, two minutes.
const (
	historySize = 1000
	historyTTL  = 2 * time.Minute
)

func main() {
	node, err := centrifuge.New(centrifuge.Config{
		LogLevel:   centrifuge.LogLevelError,
		LogHandler: func(e centrifuge.LogEntry) { log.Print(e.Message, e.Fields) },
	})
	if err != nil {
		log.Fatal(err)
	}
	if address := os.Getenv("REDIS_ADDRESS"); address != "" {
		if err := useRedis(node, address); err != nil {
			log.Fatal(err)
		}
	}
	serve(node, []byte(os.Getenv("BENCH_SECRET")), os.Getenv("HISTORY") != "")
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	http.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		CheckOrigin: func(*http.Request) bool { return true },
	}))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}

func useRedis(node *centrifuge.Node, address string) error {
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{
		Address: address, Password: os.Getenv("REDIS_PASSWORD"),
	})
	if err != nil {
		return err
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		Shards: []*centrifuge.RedisShard{shard},
	})
	if err != nil {
		return err
	}
	node.SetBroker(broker)
	return nil
}

func serve(node *centrifuge.Node, key []byte, history bool) {
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithAudience("authenticated"))
	node.OnConnecting(func(_ context.Context, e centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		var claims jwt.RegisteredClaims
		_, err := parser.ParseWithClaims(e.Token, &claims, func(*jwt.Token) (any, error) { return key, nil })
		if err != nil {
			return centrifuge.ConnectReply{}, centrifuge.DisconnectInvalidToken
		}
		return centrifuge.ConnectReply{
			Credentials:       &centrifuge.Credentials{UserID: claims.Subject, ExpireAt: claims.ExpiresAt.Unix()},
			ClientSideRefresh: true,
		}, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, answer centrifuge.SubscribeCallback) {
			answer(centrifuge.SubscribeReply{Options: centrifuge.SubscribeOptions{
				EnableRecovery: history, EnablePositioning: history,
			}}, nil)
		})
		client.OnPublish(func(e centrifuge.PublishEvent, answer centrifuge.PublishCallback) {
			// Who said it goes along, as with the hub.
			options := centrifuge.PublishOptions{ClientInfo: e.ClientInfo}
			if history {
				options.HistorySize, options.HistoryTTL = historySize, historyTTL
			}
			answer(centrifuge.PublishReply{Options: options}, nil)
		})
		client.OnRPC(func(e centrifuge.RPCEvent, answer centrifuge.RPCCallback) {
			answer(centrifuge.RPCReply{Data: e.Data}, nil)
		})
	})
}
