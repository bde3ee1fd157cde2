/* A Modbus server on libmodbus, TCP or RTU: holding registers 0x0100.. and input registers 0x1000.., outlet n draws n x 100 W.
 *
 *   modbus_server tcp PORT          prints the port once it listens (0 takes a free one)
 *   modbus_server rtu DEVICE ID     prints "ready"
 */
#include <arpa/inet.h>
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define OUTLETS 48
#define LIMITS 0x0100
#define POWER 0x1000

static modbus_mapping_t *registers(void) {
    modbus_mapping_t *map = modbus_mapping_new_start_address(0, 0, 0, 0, LIMITS, OUTLETS, POWER, 2 * OUTLETS);
    for (int i = 0; map != NULL && i < OUTLETS; i++) {
        map->tab_registers[i] = 5000;
        map->tab_input_registers[2 * i + 1] = (i + 1) * 1000; /* u32, tenths of a watt */
    }
    return map;
}

static void answer(modbus_t *ctx, modbus_mapping_t *map) {
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    for (;;) {
        int n = modbus_receive(ctx, query);
        if (n > 0)
            modbus_reply(ctx, query, n, map);
        else if (n < 0 && errno != EMBBADCRC && errno != ETIMEDOUT)
            return;
    }
}

int main(int argc, char **argv) {
    modbus_mapping_t *map = registers();
    if (argc < 3 || map == NULL)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(argv[1], "tcp") == 0) {
        modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[2]));
        int listening = modbus_tcp_listen(ctx, 1);
        struct sockaddr_in address;
        socklen_t size = sizeof address;
        if (listening < 0 || getsockname(listening, (struct sockaddr *)&address, &size) < 0)
            return 1;
        printf("%d\n", ntohs(address.sin_port));
        while (modbus_tcp_accept(ctx, &listening) >= 0)
            answer(ctx, map);
    } else {
        modbus_t *ctx = modbus_new_rtu(argv[2], 115200, 'N', 8, 1);
        if (argc < 4 || modbus_set_slave(ctx, atoi(argv[3])) < 0 || modbus_connect(ctx) < 0)
            return 1;
        printf("ready\n");
        answer(ctx, map);
    }
    return 0;
}
