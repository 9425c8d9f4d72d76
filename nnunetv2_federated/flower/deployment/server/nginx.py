"""The configuration of nginx, which stands at the door of the SuperLink."""

from __future__ import annotations

_CONFIGURATION = """\
# Lets sites reach what they need of the fleet API and nothing else of the SuperLink, which listens
# on loopback.
# Start: nginx -p FOLDER_OF_THIS_FILE -c nginx.conf

pid nginx.pid;
error_log nginx-error.log;
worker_rlimit_nofile 16384;

events {
  # A request takes two connections, one of them to the SuperLink. Who opens a connection and sends
  # half a request is not counted below, only thrown out after client_header_timeout: until then
  # there is room for thousands. To count these by address too, let the firewall do it, as in
  #   iptables -I INPUT -p tcp --syn --dport %(port)d -m connlimit --connlimit-above 128 -j DROP
  worker_connections 8192;
}

http {
  access_log off;
  server_tokens off;
  client_body_temp_path nginx-temp;
  proxy_temp_path nginx-temp;
  fastcgi_temp_path nginx-temp;
  uwsgi_temp_path nginx-temp;
  scgi_temp_path nginx-temp;

  # Requests at a time: of one address, which may be twenty sites behind one hospital's firewall,
  # and of all. A site has two or three: its question, its heartbeat, a part of a message.
  limit_conn_zone $binary_remote_addr zone=address:10m;
  limit_conn_zone $server_port zone=all:1m;
  limit_conn address 64;
  limit_conn all 1024;

  # Requests a second of one address: a site asks twice a second, and sends or fetches a part of
  # 5 MB in between. What comes faster waits, up to two seconds; beyond that it gets 503, which a
  # site takes as "try again".
  limit_req_zone $binary_remote_addr zone=requests:10m rate=200r/s;
  limit_req zone=requests burst=400;
  limit_req_zone $binary_remote_addr zone=answers:10m rate=5r/s;

  # Who stops in the middle of a request frees its place.
  client_header_timeout 10s;
  client_body_timeout 60s;
  send_timeout 60s;
  keepalive_timeout 75s;
  reset_timedout_connection on;
  large_client_header_buffers 2 8k;

  # Who answers: a question without a signature of a site's key does not come through.
  map $http_flwr_signature $unsigned {
    "" 1;
    default 0;
  }

  server {
    listen %(port)d ssl;
    ssl_certificate server.crt;
    ssl_certificate_key server.key;
    ssl_protocols TLSv1.2 TLSv1.3;

    proxy_ssl_verify on;
    proxy_ssl_name localhost;
    proxy_ssl_trusted_certificate ca.crt;
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_read_timeout 120s;

    # A part of a message: 5 MB of weights and what Flower writes around them.
    location = /v1/fleet/push-object {
      if ($unsigned) { return 401; }
      client_max_body_size 6m;
      proxy_pass https://%(listen)s;
    }
    # An answer's envelope and the names of its parts, 70 bytes each: 4 GB of weights fit. The
    # SuperLink writes all names in one transaction, in which nobody else can write: 6,000 take
    # longer than others wait for their turn, and these get HTTP 500. So few of them, and not often.
    location = /v1/fleet/push-messages {
      if ($unsigned) { return 401; }
      client_max_body_size 64k;
      limit_req zone=answers burst=50;
      proxy_pass https://%(listen)s;
    }
    # All else is short.
    location ~ ^/v1/fleet/((de)?activate-node|send-node-heartbeat|pull-[a-z]+|confirm-[a-z-]+)$ {
      if ($unsigned) { return 401; }
      client_max_body_size 16k;
      proxy_pass https://%(listen)s;
    }
    location / {
      return 403;
    }
  }
}
"""


def nginx_conf(port: int, listen: str) -> str:
    """Return a configuration of nginx.

    Parameters
    ----------
    port
        Port that sites connect to.
    listen
        ``HOST:PORT`` of the SuperLink.
    """
    return _CONFIGURATION % {"port": port, "listen": listen}
