/* libnetsnmp's side of bench/snmp.py: one session, keys kept; each round is one SET of n integers and a GET that reads them back.
 *
 * usage: netsnmp_client 2c|3 host:port n.  Commands on stdin, one line each: the number of rounds. Answer: microseconds of each, one line. */
#include <net-snmp/net-snmp-config.h>
#include <net-snmp/net-snmp-includes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const oid BASE[] = {1, 3, 6, 1, 4, 1, 99999, 1};
enum { BASE_ARCS = sizeof BASE / sizeof BASE[0] };

static void die(const char *what) {
    fprintf(stderr, "netsnmp_client: %s\n", what);
    exit(1);
}

static void make_key(netsnmp_session *s, const char *password, u_char *key, size_t *octets) {
    if (generate_Ku(s->securityAuthProto, s->securityAuthProtoLen, (const u_char *)password, strlen(password), key, octets) != SNMPERR_SUCCESS)
        die("no key");
}

static netsnmp_pdu *ask(void *session, int command, int n, long first) {
    netsnmp_pdu *pdu = snmp_pdu_create(command), *reply = NULL;
    oid name[BASE_ARCS + 1];
    memcpy(name, BASE, sizeof BASE);
    for (int i = 0; i < n; i++) {
        long value = first + i;
        name[BASE_ARCS] = i + 1;
        if (command == SNMP_MSG_SET)
            snmp_pdu_add_variable(pdu, name, BASE_ARCS + 1, ASN_INTEGER, (u_char *)&value, sizeof value);
        else
            snmp_add_null_var(pdu, name, BASE_ARCS + 1);
    }
    if (snmp_sess_synch_response(session, pdu, &reply) != STAT_SUCCESS || reply->errstat != SNMP_ERR_NOERROR)
        die("no answer, or refused");
    return reply;
}

static void round_trip(void *session, int n, long first) {
    snmp_free_pdu(ask(session, SNMP_MSG_SET, n, first));
    netsnmp_pdu *reply = ask(session, SNMP_MSG_GET, n, 0);
    int i = 0;
    for (netsnmp_variable_list *v = reply->variables; v; v = v->next_variable, i++)
        if (v->type != ASN_INTEGER || *v->val.integer != first + i || v->name[v->name_length - 1] != (oid)(i + 1))
            die("read back something else");
    if (i != n)
        die("read back too few");
    snmp_free_pdu(reply);
}

int main(int argc, char **argv) {
    if (argc != 4)
        die("usage: netsnmp_client 2c|3 host:port n");
    netsnmp_session s;
    setenv("MIBS", "", 1);
    init_snmp("rpi-bench");
    snmp_sess_init(&s);
    s.peername = argv[2];
    s.timeout = 5000000;
    s.retries = 1;
    if (strcmp(argv[1], "3") == 0) {
        s.version = SNMP_VERSION_3;
        s.securityName = "rpi";
        s.securityNameLen = strlen(s.securityName);
        s.securityLevel = SNMP_SEC_LEVEL_AUTHPRIV;
        s.securityAuthProto = usmHMAC192SHA256AuthProtocol;
        s.securityAuthProtoLen = OID_LENGTH(usmHMAC192SHA256AuthProtocol);
        s.securityAuthKeyLen = USM_AUTH_KU_LEN;
        make_key(&s, "authpass12", s.securityAuthKey, &s.securityAuthKeyLen);
        s.securityPrivProto = usmAESPrivProtocol;
        s.securityPrivProtoLen = OID_LENGTH(usmAESPrivProtocol);
        s.securityPrivKeyLen = USM_PRIV_KU_LEN;
        make_key(&s, "privpass12", s.securityPrivKey, &s.securityPrivKeyLen);
    } else {
        s.version = SNMP_VERSION_2c;
        s.community = (u_char *)"private";
        s.community_len = strlen("private");
    }
    void *session = snmp_sess_open(&s);
    if (!session)
        die("no session");
    int n = atoi(argv[3]), rounds;
    long first = 0;
    while (scanf("%d", &rounds) == 1) {
        for (int i = 0; i < rounds; i++) {
            struct timespec a, b;
            clock_gettime(CLOCK_MONOTONIC, &a);
            round_trip(session, n, ++first);
            clock_gettime(CLOCK_MONOTONIC, &b);
            printf("%.2f ", (b.tv_sec - a.tv_sec) * 1e6 + (b.tv_nsec - a.tv_nsec) * 1e-3);
        }
        printf("\n");
        fflush(stdout);
    }
    snmp_sess_close(session);
    return 0;
}
